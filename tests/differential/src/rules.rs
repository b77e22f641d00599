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

    fn has(&self, what: &str) -> bool {
        self.text.contains(what)
    }

    fn by_user(&self) -> bool {
        !self.has(" by 0:")
    }

    fn long(&self) -> bool {
        self.has("a name of 256")
    }

    fn dots(&self) -> bool {
        self.has(" \".\"") || self.has(" \"..\"")
    }

    fn two_directories(&self) -> bool {
        let mut named = self.text.split('<').skip(1);
        let mut next = || named.next().and_then(|n| n.split('>').next());
        let (first, second) = (next(), next());
        second.is_some() && first != second
    }

    fn gives_away(&self) -> bool {
        self.by_user() && (self.has(" uid=") || self.has(" gid="))
    }

    /// Whether two modes differ in nothing but their set-id bits.
    fn set_id_only(&self) -> bool {
        let octal = |s: &str| u32::from_str_radix(s.trim(), 8).ok();
        let both = octal(&self.ours).zip(octal(&self.reference));
        both.is_some_and(|(a, b)| (a ^ b) & !0o6000 == 0)
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

const FILE: u32 = 1;
const DIRECTORY: u32 = 2;
const BLOCK: u32 = 3;
const CHARACTER: u32 = 4;
const SYMLINK_KIND: u32 = 5;
const SOCKET: u32 = 6;
const SETATTR: u32 = 2;
const LOOKUP: u32 = 3;
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

/// Statuses of a call that is wrong in two ways: which of them is told, the RFC leaves open.
struct Pair {
    procedures: &'static [u32],
    /// Ours.
    ours: u32,
    /// The other's, any of these.
    reference: &'static [u32],
    /// What must be seen of the call, so that both faults are there or may be.
    both: fn(&Difference) -> bool,
}

const fn pair(
    procedures: &'static [u32],
    ours: u32,
    reference: &'static [u32],
    both: fn(&Difference) -> bool,
) -> Pair {
    Pair {
        procedures,
        ours,
        reference,
        both,
    }
}

/// Procedures that put a name into a directory, and all that take one.
const MAKES: &[u32] = &[CREATE, MKDIR, SYMLINK, MKNOD, LINK];
const NAMES: &[u32] = &[
    LOOKUP, CREATE, MKDIR, SYMLINK, MKNOD, REMOVE, RMDIR, RENAME, LINK,
];

/// `docs/nfs-differential.md` has these in words.
const TWO_ERRORS: &[Pair] = &[
    // A name that is too long, and the directory is none, is gone, or may not be used.
    pair(NAMES, NAMETOOLONG, &[NOTDIR, STALE], Difference::long),
    pair(NAMES, NAMETOOLONG, &[ACCES], |d| d.long() && d.by_user()),
    pair(&[RENAME], NAMETOOLONG, &[NOENT, INVAL], Difference::long),
    pair(&[CREATE], NAMETOOLONG, &[PERM], |d| {
        d.long() && d.gives_away()
    }),
    // The names "." and "..", likewise.
    pair(MAKES, EXIST, &[NOTDIR, STALE], Difference::dots),
    pair(MAKES, EXIST, &[ACCES, PERM], |d| d.dots() && d.by_user()),
    pair(&[REMOVE], ISDIR, &[NOTDIR, STALE], Difference::dots),
    pair(&[REMOVE], ISDIR, &[ACCES], |d| d.dots() && d.by_user()),
    pair(&[RMDIR], INVAL, &[NOTDIR, STALE], Difference::dots),
    pair(&[RMDIR], INVAL, &[ACCES], |d| d.dots() && d.by_user()),
    pair(&[RMDIR], NOTEMPTY, &[NOTDIR, STALE], Difference::dots),
    pair(&[RMDIR], NOTEMPTY, &[ACCES], |d| d.dots() && d.by_user()),
    pair(&[RENAME], INVAL, &[NOTDIR, STALE], Difference::dots),
    // The size needs the right to write, the rest belongs to the owner.
    pair(&[SETATTR], ACCES, &[PERM], |d| {
        let owners = [" mode=", " uid=", " gid=", "time=2"];
        d.by_user() && d.has(" size=") && owners.iter().any(|o| d.has(o))
    }),
    // An owner that the caller may not give, and a directory or name that is not to be had.
    pair(&[CREATE], ACCES, &[PERM], Difference::gives_away),
    pair(&[CREATE], EXIST, &[PERM], Difference::gives_away),
    pair(&[CREATE], ISDIR, &[PERM], Difference::gives_away),
    // The name is taken, and the directory may not be written.
    pair(&[LINK], EXIST, &[ACCES], Difference::by_user),
    // What is there is of the wrong kind, and may not be removed.
    pair(&[REMOVE], ACCES, &[ISDIR], Difference::by_user),
    pair(&[REMOVE], PERM, &[ISDIR], Difference::by_user),
    pair(&[RMDIR], ACCES, &[NOTDIR], Difference::by_user),
    pair(&[RMDIR], PERM, &[NOTDIR], Difference::by_user),
    // No regular file, and no right to it.
    pair(&[READ, WRITE], INVAL, &[ACCES], |d| {
        d.kind != FILE && d.by_user()
    }),
    // A type that MKNOD does not make, and a directory that is none.
    pair(&[MKNOD], BADTYPE, &[NOTDIR, STALE], |d| {
        [" type=1", " type=2", " type=5"].iter().any(|t| d.has(t))
    }),
    // One of the two directories may not be written, and the names do not fit.
    pair(
        &[RENAME],
        ACCES,
        &[NOENT, INVAL, NOTEMPTY, PERM, NOTDIR],
        Difference::by_user,
    ),
    pair(&[RENAME], PERM, &[NOTEMPTY, INVAL], Difference::by_user),
    // A file onto a directory that is not empty; one directory is none, the other is gone.
    pair(&[RENAME], ISDIR, &[NOTEMPTY], |_| true),
    pair(&[RENAME], NOTDIR, &[STALE], |_| true),
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
        explains: |d| {
            let directory = d.is(&[READ, WRITE, COMMIT]) && d.kind == DIRECTORY;
            let other = d.is(&[COMMIT]) && d.kind != FILE;
            directory && d.status(INVAL, ISDIR) || other && d.status(INVAL, SERVERFAULT)
        },
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
        explains: |d| d.has(" \"\"") && d.failed() && d.statuses[0] == ACCES,
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
            let fits = |p: &&Pair| {
                let [ours, reference] = d.statuses;
                d.is(p.procedures) && p.ours == ours && p.reference.contains(&reference)
            };
            d.failed() && TWO_ERRORS.iter().filter(fits).any(|p| (p.both)(d))
        },
    },
    Rule {
        id: "device-by-a-user",
        explains: |d| {
            let device = d.has(" type=3") || d.has(" type=4");
            d.is(&[MKNOD]) && device && d.by_user() && d.failed() && d.statuses[0] == PERM
        },
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
            let unchecked = d.is(&[CREATE]) && d.has("how=0");
            let opened = [ISDIR, BADTYPE, NXIO, SERVERFAULT, NAMETOOLONG, ACCES];
            let refused = d.failed() && d.statuses[0] == EXIST && opened.contains(&d.statuses[1]);
            let directory = d.is(&[CREATE]) && d.dots() && d.status(EXIST, ISDIR);
            unchecked && (d.status(0, ACCES) || d.status(EXIST, 0) || refused) || directory
        },
    },
    Rule {
        id: "special-file-by-its-handle",
        explains: |d| {
            let listed = d.is(&[READDIR, READDIRPLUS]);
            d.status(0, INVAL) && (listed || [BLOCK, CHARACTER, SOCKET].contains(&d.kind))
        },
    },
    Rule {
        id: "directory-to-another-parent",
        explains: |d| d.is(&[RENAME]) && d.status(ACCES, 0) && d.by_user() && d.two_directories(),
    },
    Rule {
        id: "mode-of-a-new-directory",
        explains: |d| d.is(&[MKDIR]) && d.item.ends_with("mode") && d.set_id_only(),
    },
    Rule {
        id: "set-id-bits",
        explains: |d| {
            let with = [" uid=", " gid=", " size="].iter().any(|w| d.has(w));
            d.is(&[SETATTR, CREATE, MKNOD]) && with && d.item.ends_with("mode") && d.set_id_only()
        },
    },
    Rule {
        id: "largest-file",
        explains: |d| {
            let theirs = d.reach > EXT4_MOST && (d.status(0, FBIG) || d.status(0, INVAL));
            let order = [PERM, ACCES, ISDIR, INVAL, STALE].contains(&d.statuses[1]);
            let ours = d.reach > i64::MAX as u64 && d.statuses[0] == FBIG && d.failed();
            let sized = d.is(&[SETATTR, WRITE, CREATE]);
            theirs && d.is(&[SETATTR, WRITE, CREATE, READ, COMMIT]) || sized && ours && order
        },
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
        let (table, _) = table.split_once("\n### ").unwrap_or((table, ""));
        let rows = table.lines().filter_map(|l| l.strip_prefix("| `"));
        let mut told: Vec<&str> = rows.filter_map(|l| l.split('`').next()).collect();
        let mut known: Vec<&str> = RULES.iter().map(|r| r.id).collect();
        told.sort_unstable();
        known.sort_unstable();
        assert_eq!(told, known);
    }
}
