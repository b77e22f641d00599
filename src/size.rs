//! Sizes as people type them: `4096`, `64M`, `10G`, `8T`, also `10GiB`. Units are powers of 1024.

use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(u64);

impl Size {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit());
        let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(format!("unknown unit {unit:?}; use K, M, G or T")),
        };
        let number: u64 = number
            .parse()
            .map_err(|_| format!("{text:?} is not a size; write it as 10G or 512M"))?;
        number
            .checked_mul(1 << shift)
            .map(Size)
            .ok_or_else(|| format!("{text} is more bytes than can be counted"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let read = |t: &str| t.parse::<Size>().map(Size::bytes);
        assert_eq!(read("4096"), Ok(4096));
        assert_eq!(read("10G"), Ok(10 << 30));
        assert_eq!(read("3MiB"), Ok(3 << 20));
        assert_eq!(read("8t"), Ok(8 << 40));
        for bad in ["", "G", "1.5G", "10 G", "10X", "99999999999T", "-1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
