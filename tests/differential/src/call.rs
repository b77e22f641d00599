//! One call as two servers get it, at random: the arguments differ in handles, cookies and the
//! times of guards, and in nothing else.

use trivet_bench::rng::Rng;
use trivet_nfs::rpc::message::{Credential, SysCredential};
use trivet_nfs::xdr::Enc;

/// Which of the two servers: ours, the reference.
pub const SIDES: [usize; 2] = [0, 1];

/// An object as both servers know it.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its handles.
    pub handle: [Vec<u8>; 2],
    /// Change time, for guards; none once something may have changed it.
    pub ctime: [Option<(u32, u32)>; 2],
    /// `ftype3`.
    pub kind: u32,
    /// How it came to be, for people.
    pub name: String,
}

/// A call.
#[derive(Clone, Debug)]
pub struct Call {
    /// Procedure of NFSv3.
    pub procedure: u32,
    /// Caller's uid; the gid is the same, groups are those of [`credential`].
    pub uid: u32,
    /// Encoded arguments for each server.
    pub args: [Vec<u8>; 2],
    /// In words.
    pub text: String,
    /// Object whose attributes come back as "attr", by place in the list, if it is known.
    pub subject: Option<usize>,
    /// Name under which a new object is made, and of what kind.
    pub makes: Option<(u32, String)>,
    /// Largest offset that the arguments name.
    pub reach: u64,
}

/// Whom the calls come from.
pub fn credential(uid: u32) -> Credential {
    Credential::Sys(SysCredential {
        machine: b"differential".to_vec(),
        uid,
        gid: uid,
        groups: if uid == 1000 { vec![100] } else { Vec::new() },
    })
}

/// Names of procedures.
pub const PROCEDURES: [&str; 22] = [
    "NULL",
    "GETATTR",
    "SETATTR",
    "LOOKUP",
    "ACCESS",
    "READLINK",
    "READ",
    "WRITE",
    "CREATE",
    "MKDIR",
    "SYMLINK",
    "MKNOD",
    "REMOVE",
    "RMDIR",
    "RENAME",
    "LINK",
    "READDIR",
    "READDIRPLUS",
    "FSSTAT",
    "FSINFO",
    "PATHCONF",
    "COMMIT",
];

/// How often each procedure is called, by number.
const WEIGHTS: [u64; 22] = [
    0, 4, 14, 8, 6, 3, 10, 14, 12, 6, 4, 4, 6, 4, 9, 6, 3, 4, 1, 1, 1, 3,
];

/// Writes arguments for both servers.
struct Both {
    enc: [Enc; 2],
    text: String,
}

impl Both {
    fn handle(&mut self, o: &Object) -> &mut Self {
        for s in SIDES {
            self.enc[s].opaque(&o.handle[s]);
        }
        self.text += &format!(" <{}>", o.name);
        self
    }

    fn name(&mut self, n: &[u8]) -> &mut Self {
        for e in &mut self.enc {
            e.opaque(n);
        }
        self.text += &match n.len() {
            0..=40 => format!(" {:?}", String::from_utf8_lossy(n)),
            long => format!(" (a name of {long} bytes)"),
        };
        self
    }

    fn u32(&mut self, what: &str, n: u32) -> &mut Self {
        for e in &mut self.enc {
            e.u32(n);
        }
        self.text += &format!(" {what}={n}");
        self
    }

    fn u64(&mut self, what: &str, n: u64) -> &mut Self {
        for e in &mut self.enc {
            e.u64(n);
        }
        self.text += &format!(" {what}={n}");
        self
    }

    fn optional(&mut self, what: &str, n: Option<u32>) -> &mut Self {
        for e in &mut self.enc {
            e.bool(n.is_some());
            n.map(|n| e.u32(n));
        }
        if let Some(n) = n {
            self.text += &match what {
                "mode" => format!(" mode={n:o}"),
                _ => format!(" {what}={n}"),
            };
        }
        self
    }
}

/// Makes calls at random.
pub struct Maker<'a> {
    /// Where the random numbers come from.
    pub rng: &'a mut Rng,
    /// What there is, or was.
    pub objects: &'a [Object],
}

impl Maker<'_> {
    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.rng.below(from.len() as u64) as usize].clone()
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.rng.below(n) == 0
    }

    /// Any object, of this kind most of the time.
    fn object(&mut self, kind: u32) -> (usize, Object) {
        let fit: Vec<usize> = (0..self.objects.len())
            .filter(|n| self.objects[*n].kind == kind)
            .collect();
        let n = match fit.is_empty() || self.one_in(10) {
            true => self.rng.below(self.objects.len() as u64) as usize,
            false => self.pick(&fit),
        };
        (n, self.objects[n].clone())
    }

    /// An object that an open of another server returns from: a file mostly, or a directory or a
    /// symlink.
    fn data_object(&mut self) -> (usize, Object) {
        let all = self.objects.iter().enumerate();
        let fit: Vec<usize> = all
            .filter(|(_, o)| matches!(o.kind, 1 | 2 | 5))
            .map(|(n, _)| n)
            .collect();
        let files: Vec<usize> = fit
            .iter()
            .copied()
            .filter(|n| self.objects[*n].kind == 1)
            .collect();
        let n = match files.is_empty() || self.one_in(10) {
            true => self.pick(&fit),
            false => self.pick(&files),
        };
        (n, self.objects[n].clone())
    }

    fn a_name(&mut self) -> Vec<u8> {
        if !self.one_in(12) {
            return vec![b'a' + self.rng.below(9) as u8];
        }
        let odd: [&[u8]; 7] = [b".", b"..", b"", b"x/y", b"a\0b", &[0xff, 0xfe], b"ab "];
        match self.rng.below(9) {
            n @ 0..=6 => odd[n as usize].to_vec(),
            7 => vec![b'l'; 255],
            _ => vec![b'l'; 256],
        }
    }

    fn offset(&mut self) -> u64 {
        match self.rng.below(24) {
            0 => self.pick(&[1 << 32, 1 << 40, (1 << 43) - 4096]),
            1 => self.pick(&[
                1 << 62,
                i64::MAX as u64 - 1,
                i64::MAX as u64,
                1 << 63,
                u64::MAX,
            ]),
            _ => self.rng.below(70_000),
        }
    }

    /// `sattr3`; of a new object the owner, and of one that is no file the size, are rare: other
    /// servers refuse them, and then the trees differ.
    fn attributes(&mut self, b: &mut Both, procedure: u32) -> u64 {
        let fresh = procedure != 2;
        let some = |m: &mut Self, of: u64| m.one_in(of);
        let modes = [
            0o644, 0o600, 0, 0o755, 0o4755, 0o2755, 0o6777, 0o1777, 0o444,
        ];
        // Other servers leave the set-id bits of a new directory out.
        let mask = if procedure == 9 && !self.one_in(10) {
            0o1777
        } else {
            0o7777
        };
        let mode = (fresh || some(self, 3)).then(|| self.pick(&modes) & mask);
        let uid = some(self, if fresh { 40 } else { 5 }).then(|| self.pick(&[0, 1000, 1001]));
        let gid = some(self, if fresh { 40 } else { 5 }).then(|| self.pick(&[0, 100, 1000, 1001]));
        let sized = if matches!(procedure, 2 | 8) { 4 } else { 80 };
        let size = some(self, sized).then(|| match self.one_in(2) {
            true => self.offset(),
            false => self.pick(&[0, 1, 4095, 4096, 5000, 20_000]),
        });
        b.optional("mode", mode)
            .optional("uid", uid)
            .optional("gid", gid);
        for e in &mut b.enc {
            e.bool(size.is_some());
            size.map(|s| e.u64(s));
        }
        if let Some(s) = size {
            b.text += &format!(" size={s}");
        }
        for what in ["atime", "mtime"] {
            let timed = [5, 12, 80][usize::from(fresh) + usize::from(procedure == 10)];
            let how = match self.rng.below(timed) {
                0 => 1,
                1 => 2,
                _ => 0,
            };
            b.u32(what, how);
            if how == 2 {
                let seconds = 1_000_000_000 + self.rng.below(10_000_000) as u32;
                let nanos = self.rng.below(1_000_000_000) as u32;
                b.u32("s", seconds).u32("ns", nanos);
            }
        }
        size.unwrap_or(0)
    }

    /// A call.
    pub fn make(&mut self) -> Call {
        let total: u64 = WEIGHTS.iter().sum();
        let mut at = self.rng.below(total);
        let mut procedure = 0;
        for (n, w) in WEIGHTS.iter().enumerate() {
            if at < *w {
                procedure = n as u32;
                break;
            }
            at -= w;
        }
        self.call(procedure)
    }

    fn call(&mut self, procedure: u32) -> Call {
        let uid = self.pick(&[0, 0, 1000, 1000, 1000, 1001]);
        let mut b = Both {
            enc: [Enc::new(), Enc::new()],
            text: format!("{} by {uid}:", PROCEDURES[procedure as usize]),
        };
        let (mut subject, mut makes, mut reach) = (None, None, 0);
        let kind = match procedure {
            3 | 8..=14 | 16 | 17 => 2,
            5 => 5,
            6 | 7 | 21 => 1,
            2 | 15 => self.pick(&[1, 1, 1, 1, 2, 5, 7]),
            _ => self.pick(&[1, 1, 2, 5, 7, 4]),
        };
        let (n, o) = match procedure {
            // nfs-ganesha opens what it is told to write: a FIFO hangs its thread for good.
            6 | 7 | 21 => self.data_object(),
            _ => self.object(kind),
        };
        b.handle(&o);
        match procedure {
            2 => {
                subject = Some(n);
                reach = self.attributes(&mut b, 2);
                self.guard(&mut b, &o);
            }
            1 | 4 | 5 | 18..=20 => {
                subject = Some(n);
                if procedure == 4 {
                    b.u32("access", 0x3f);
                }
            }
            3 | 12 | 13 => {
                b.name(&self.a_name());
            }
            6 => {
                subject = Some(n);
                let count = self.pick(&[0, 1, 100, 4096, 20_000]);
                reach = self.offset();
                b.u64("offset", reach).u32("count", count);
            }
            7 => {
                subject = Some(n);
                reach = self.write(&mut b);
            }
            8..=11 => {
                let (kind, name, size) = self.creation(procedure, &o, &mut b);
                makes = Some((kind, name));
                reach = size;
            }
            14 => {
                b.name(&self.a_name());
                let (_, to) = self.object(2);
                b.handle(&to).name(&self.a_name());
            }
            15 => {
                subject = Some(n);
                let (_, dir) = self.object(2);
                b.handle(&dir).name(&self.a_name());
            }
            21 => {
                subject = Some(n);
                reach = self.offset();
                b.u64("offset", reach).u32("count", 4096);
            }
            _ => {}
        }
        let [first, second] = b.enc;
        Call {
            procedure,
            uid,
            args: [first.into_vec(), second.into_vec()],
            text: b.text,
            subject,
            makes,
            reach,
        }
    }

    fn guard(&mut self, b: &mut Both, o: &Object) {
        let right = self.one_in(4) && o.ctime.iter().all(Option::is_some);
        let wrong = !right && self.one_in(8);
        for s in SIDES {
            let when = match (right, wrong, o.ctime[s]) {
                (true, _, Some(c)) => Some(c),
                (_, true, _) => Some((1, 1)),
                _ => None,
            };
            b.enc[s].bool(when.is_some());
            when.map(|(secs, nanos)| b.enc[s].u32(secs).u32(nanos));
        }
        b.text += if wrong {
            " guard=wrong"
        } else if right {
            " guard"
        } else {
            ""
        };
    }

    fn write(&mut self, b: &mut Both) -> u64 {
        let offset = self.offset();
        let len = self.pick(&[0, 1, 500, 4096, 9000, 20_000]);
        let stable = self.rng.below(3) as u32;
        let data = self.rng.bytes(len);
        b.u64("offset", offset)
            .u32("count", len as u32)
            .u32("stable", stable);
        for e in &mut b.enc {
            e.opaque(&data);
        }
        offset.saturating_add(len as u64)
    }

    fn creation(&mut self, procedure: u32, dir: &Object, b: &mut Both) -> (u32, String, u64) {
        let name = self.a_name();
        let mut size = 0;
        b.name(&name);
        let mut kind = [1, 2, 5, 7][procedure as usize - 8];
        match procedure {
            8 => {
                let how = self.pick(&[0, 0, 1, 1, 2]);
                b.u32("how", how);
                match how {
                    2 => b.u64("verifier", self.pick(&[1, 2, 3 << 40])),
                    _ => {
                        size = self.attributes(b, procedure);
                        b
                    }
                };
            }
            9 => {
                size = self.attributes(b, procedure);
            }
            10 => {
                size = self.attributes(b, procedure);
                let targets: [&[u8]; 4] = [b"a", b"../b", b"/", &[b't'; 1023]];
                let target = self.pick(&targets);
                b.name(target);
            }
            _ => {
                kind = self.pick(&[3, 4, 6, 7, 7, 1, 2, 5]);
                b.u32("type", kind);
                if matches!(kind, 3 | 4 | 6 | 7) {
                    size = self.attributes(b, procedure);
                }
                if matches!(kind, 3 | 4) {
                    b.u32("major", 7).u32("minor", self.pick(&[0, 3, 300]));
                }
            }
        }
        let shown = String::from_utf8_lossy(&name[..name.len().min(10)]).into_owned();
        (kind, format!("{}/{shown}", dir.name), size)
    }
}
