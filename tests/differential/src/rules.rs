//! Which differences are allowed, and why. `docs/nfs-differential.md` has the same list for
//! people; a test keeps the two together.

/// One item in which two answers differ.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Number of the call.
    pub number: u64,
    /// The call in words.
    pub text: String,
    /// Its procedure.
    pub procedure: u32,
    /// Largest offset that it names.
    pub reach: u64,
    /// Type of the object that the call is about, `ftype3`.
    pub kind: u32,
    /// `status`, or the item, or the attribute of an item (`dir.mtime`).
    pub item: String,
    /// Ours.
    pub ours: String,
    /// The other.
    pub reference: String,
    /// `nfsstat3` of both.
    pub statuses: [u32; 2],
}

impl Difference {
    fn status(&self, ours: u32, reference: u32) -> bool {
        self.item == "status" && self.statuses == [ours, reference]
    }

    fn is(&self, procedures: &[u32]) -> bool {
        procedures.contains(&self.procedure)
    }
}

/// A difference that is allowed.
pub struct Rule {
    /// Its name in the list.
    pub id: &'static str,
    /// Whether it explains this one.
    pub explains: fn(&Difference) -> bool,
}

/// All of them.
pub const RULES: &[Rule] = &[];

/// The rule that explains a difference.
pub fn explanation(d: &Difference) -> Option<&'static Rule> {
    RULES.iter().find(|r| (r.explains)(d))
}
