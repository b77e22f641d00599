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

    fn failed(&self) -> bool {
        self.item == "status" && self.statuses[0] != 0 && self.statuses[1] != 0
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

/// Times into which nfs-ganesha puts the verifier of an exclusive CREATE, for the verifiers of
/// `call`: each half of it, little-endian, as seconds.
const VERIFIER_TIMES: [&str; 4] = [
    "0.000000000 ",
    "16777216.000000000 ",
    "33554432.000000000 ",
    "196608.000000000 ",
];

const DIRECTORY: u32 = 2;
const SYMLINK_KIND: u32 = 5;
const SETATTR: u32 = 2;
const LOOKUP: u32 = 3;
const ACCESS: u32 = 4;
const READ: u32 = 6;
const WRITE: u32 = 7;
const CREATE: u32 = 8;
const MKDIR: u32 = 9;
const SYMLINK: u32 = 10;
const MKNOD: u32 = 11;
const REMOVE: u32 = 12;
const RMDIR: u32 = 13;
const RENAME: u32 = 14;
const LINK: u32 = 15;
const READDIR: u32 = 16;
const READDIRPLUS: u32 = 17;
const COMMIT: u32 = 21;

const PERM: u32 = 1;
const NOENT: u32 = 2;
const NXIO: u32 = 6;
const ACCES: u32 = 13;
const EXIST: u32 = 17;
const NOTDIR: u32 = 20;
const ISDIR: u32 = 21;
const INVAL: u32 = 22;
const FBIG: u32 = 27;
const NAMETOOLONG: u32 = 63;
const NOTEMPTY: u32 = 66;
const STALE: u32 = 70;
const SERVERFAULT: u32 = 10_006;
const BADTYPE: u32 = 10_007;
/// ext4's largest file.
const EXT4_MOST: u64 = (16 << 40) - 4096;

/// A call that is wrong in two ways: which of them is told, the RFC leaves open.
const TWO_ERRORS: &[(u32, [u32; 2])] = &[
    (SETATTR, [ACCES, PERM]),
    (CREATE, [ACCES, PERM]),
    (CREATE, [EXIST, PERM]),
    (CREATE, [EXIST, ACCES]),
    (CREATE, [ISDIR, ACCES]),
    (CREATE, [ISDIR, PERM]),
    (CREATE, [EXIST, NXIO]),
    (CREATE, [EXIST, SERVERFAULT]),
    (CREATE, [EXIST, NAMETOOLONG]),
    (LINK, [EXIST, ACCES]),
    (REMOVE, [ACCES, ISDIR]),
    (RMDIR, [PERM, NOTDIR]),
    (REMOVE, [PERM, ISDIR]),
    (RMDIR, [ACCES, NOTDIR]),
    (WRITE, [INVAL, ACCES]),
    (MKNOD, [INVAL, ACCES]),
    (MKNOD, [BADTYPE, STALE]),
    (MKNOD, [BADTYPE, NOTDIR]),
    (CREATE, [EXIST, ISDIR]),
    (CREATE, [EXIST, BADTYPE]),
    (CREATE, [FBIG, INVAL]),
    (READ, [INVAL, ACCES]),
    (COMMIT, [INVAL, SERVERFAULT]),
    (RENAME, [ACCES, INVAL]),
    (RENAME, [ACCES, NOTEMPTY]),
    (RENAME, [ACCES, PERM]),
    (RENAME, [PERM, NOTEMPTY]),
    (RENAME, [ISDIR, NOTEMPTY]),
    (RENAME, [NOTDIR, STALE]),
    (RENAME, [ACCES, NOENT]),
];

/// All of them.
pub const RULES: &[Rule] = &[
    Rule {
        id: "optional-attributes",
        explains: |d| d.item.ends_with('?') && !d.item.starts_with("handle"),
    },
    Rule {
        id: "size-of-directory",
        explains: |d| {
            let before =
                d.item.ends_with("-before.size") || d.item == "before.size" && d.kind == DIRECTORY;
            before || d.item.ends_with("size-of-directory")
        },
    },
    Rule {
        id: "space-used",
        explains: |d| d.item.ends_with(".used"),
    },
    Rule {
        id: "limits",
        explains: |d| d.is(&[18, 19, 20]) && !d.item.starts_with("attr") && d.item != "status",
    },
    Rule {
        id: "verifier-in-times",
        explains: |d| {
            let again = d.is(&[CREATE]) && d.text.contains("how=2");
            let again = again && (d.status(0, EXIST) || d.status(0, ACCES));
            again
                || (d.item.ends_with("time") || d.item.ends_with(".times"))
                    && VERIFIER_TIMES.iter().any(|t| d.reference.contains(t))
        },
    },
    Rule {
        id: "not-a-regular-file",
        explains: |d| d.is(&[READ, WRITE, COMMIT]) && d.kind == DIRECTORY && d.status(INVAL, ISDIR),
    },
    Rule {
        id: "link-of-a-directory",
        explains: |d| {
            d.is(&[LINK]) && d.kind == DIRECTORY && d.failed() && d.statuses[1] == BADTYPE
        },
    },
    Rule {
        id: "size-of-no-file",
        explains: |d| {
            let ours = if d.kind == DIRECTORY { ISDIR } else { INVAL };
            d.is(&[SETATTR]) && d.kind != 1 && d.status(ours, BADTYPE)
        },
    },
    Rule {
        id: "size-of-a-new-object",
        explains: |d| {
            d.is(&[MKDIR, SYMLINK, MKNOD]) && d.text.contains(" size=") && d.status(0, INVAL)
        },
    },
    Rule {
        id: "more-durable-than-asked",
        explains: |d| d.is(&[WRITE]) && d.item == "committed" && d.ours == "2",
    },
    Rule {
        id: "empty-name",
        explains: |d| d.text.contains(" \"\"") && d.status(ACCES, INVAL),
    },
    Rule {
        id: "slash-or-nul-in-a-name",
        explains: |d| {
            let such = d.text.contains("\"x/y\"") || d.text.contains("\"a\\0b\"");
            such && d.item == "status" && d.statuses[0] == INVAL
        },
    },
    Rule {
        id: "which-of-two-errors",
        explains: |d| {
            let odd = [
                "a name of 256",
                "\"x/y\"",
                "\"a\\0b\"",
                " \"\"",
                " \".\"",
                " \"..\"",
            ];
            let named = |p| TWO_ERRORS.contains(&(p, d.statuses));
            d.failed() && (odd.iter().any(|o| d.text.contains(o)) || named(d.procedure))
        },
    },
    Rule {
        id: "device-by-a-user",
        explains: |d| d.is(&[MKNOD]) && d.failed() && d.statuses[0] == PERM,
    },
    Rule {
        id: "end-of-a-read-of-nothing",
        explains: |d| d.is(&[READ]) && d.item == "eof" && d.text.ends_with(" count=0"),
    },
    Rule {
        id: "times-of-a-symlink",
        explains: |d| {
            let set = d.is(&[SYMLINK]) || d.is(&[SETATTR]) && d.kind == SYMLINK_KIND;
            set && d.item.ends_with("time") && d.reference.starts_with("now")
        },
    },
    Rule {
        id: "atime-of-what-is-read",
        explains: |d| d.item.ends_with(".atime") && d.reference.starts_with("now"),
    },
    Rule {
        id: "write-of-nothing",
        explains: |d| d.is(&[WRITE]) && d.text.contains(" count=0 ") && d.status(ACCES, 0),
    },
    Rule {
        id: "size-of-a-new-file",
        explains: |d| {
            let item = d.item == "attr.size" || d.item == "attr.mtime";
            d.is(&[CREATE]) && d.text.contains(" size=") && item
        },
    },
    Rule {
        id: "above-the-export",
        explains: |d| d.is(&[LOOKUP]) && d.text.ends_with(" \"..\"") && d.item == "attr.nlink",
    },
    Rule {
        id: "owner-of-a-new-object",
        explains: |d| {
            d.is(&[CREATE, MKDIR, SYMLINK, MKNOD])
                && (d.text.contains(" gid=") || d.text.contains(" uid="))
                && (d.item == "attr.gid"
                    || d.item == "attr.uid"
                    || d.status(0, PERM)
                    || d.status(0, ACCES))
        },
    },
    Rule {
        id: "create-of-what-exists",
        explains: |d| {
            let differ = d.status(0, ACCES) || d.status(EXIST, 0);
            d.is(&[CREATE]) && d.text.contains("how=0") && differ
        },
    },
    Rule {
        id: "refused-once",
        explains: |d| d.is(&[ACCESS, READDIR, READDIRPLUS]) && d.status(0, INVAL),
    },
    Rule {
        id: "mode-of-a-new-directory",
        explains: |d| d.item.ends_with("mode"),
    },
    Rule {
        id: "largest-file",
        explains: |d| d.reach > EXT4_MOST && d.item == "status",
    },
];

/// The rule that explains a difference.
pub fn explanation(d: &Difference) -> Option<&'static Rule> {
    RULES.iter().find(|r| (r.explains)(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_in_the_table_for_people_and_the_other_way_round() {
        let doc = include_str!("../../../docs/nfs-differential.md");
        let (_, table) = doc.split_once("## The rules").unwrap_or_default();
        let rows = table.lines().filter_map(|l| l.strip_prefix("| `"));
        let mut told: Vec<&str> = rows.filter_map(|l| l.split('`').next()).collect();
        let mut known: Vec<&str> = RULES.iter().map(|r| r.id).collect();
        told.sort_unstable();
        known.sort_unstable();
        assert_eq!(told, known);
    }
}
