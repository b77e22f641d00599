//! A tiny set-of-flags newtype, so that no crate is needed for one.

/// Defines a `u32` newtype with named bits and the usual set operations.
macro_rules! bitmask {
    ($(#[$m:meta])* $name:ident { $($(#[$cm:meta])* $c:ident = $v:expr,)* }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub u32);

        impl $name {
            $($(#[$cm])* pub const $c: $name = $name($v);)*
            /// No bit.
            pub const NONE: $name = $name(0);
            /// Whether all bits of `other` are in.
            pub fn has(self, other: $name) -> bool {
                self.0 & other.0 == other.0
            }
            /// Bits of both.
            pub fn and(self, other: $name) -> $name {
                $name(self.0 & other.0)
            }
        }

        impl std::ops::BitOr for $name {
            type Output = $name;
            fn bitor(self, other: $name) -> $name {
                $name(self.0 | other.0)
            }
        }
    };
}
