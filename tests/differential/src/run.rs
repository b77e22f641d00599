//! Calls both servers, compares, and starts over where they went apart.
//!
//! Invariants: handles are learnt from answers only; the two lists of objects stay in step, because
//! whatever one server makes and the other does not ends the epoch, and the next one begins in a
//! new directory.

use std::collections::{BTreeMap, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use thiserror::Error;
use trivet_bench::rng::Rng;
use trivet_nfs::client::nfs::{Fattr, NfsClient, NfsClientError, Url, put_sattr};
use trivet_nfs::client::rpc::{ClientError, root_credential};
use trivet_nfs::nfs3::types::PROGRAM;
use trivet_nfs::xdr::{Dec, Enc};

use crate::call::{Call, Maker, Object, PROCEDURES, SIDES, credential};
use crate::reply::{Entry, Reply, Value};
use crate::rules::{Difference, explanation};

/// Calls in one directory, at most.
const EPOCH: u64 = 400;
/// Objects that calls are about, at most.
const MOST_OBJECTS: usize = 48;
/// Calls to list one directory, at most: more means that the listing does not end.
const MOST_PAGES: usize = 400;
/// A time so near to now is the server's own.
const OWN_TIME: u64 = 86_400;

/// How much.
#[derive(Clone, Debug)]
pub struct Options {
    /// Calls.
    pub calls: u64,
    /// Of the calls.
    pub seed: u64,
    /// Ends after so many differences without an explanation.
    pub most: usize,
    /// Print every call and what both said.
    pub trace: bool,
}

/// Why there is nothing to compare.
#[derive(Debug, Error)]
pub enum RunError {
    /// A server cannot be asked.
    #[error("{which}: {source}, after: {call}")]
    Server {
        /// Ours, or the reference.
        which: &'static str,
        /// The last call, in words.
        call: String,
        /// What happened.
        source: NfsClientError,
    },
}

/// Items that stay different once they are.
const LASTING: [&str; 9] = [
    "count",
    "data",
    "target",
    "names",
    ".mode",
    ".uid",
    ".gid",
    "attr.size",
    ".nlink",
];

const WHICH: [&str; 2] = ["our server", "the reference"];

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Calls made.
    pub calls: u64,
    /// Calls by name, and how many of them succeeded on our side.
    pub by_procedure: BTreeMap<&'static str, (u64, u64)>,
    /// Rules that were needed: how often, and the first case.
    pub explained: BTreeMap<&'static str, (u64, Difference)>,
    /// Statuses that differed, by rule, procedure, and both statuses.
    pub statuses: BTreeMap<(&'static str, &'static str, [u32; 2]), u64>,
    /// Why directories were left early, by the rule of the difference.
    pub ended: BTreeMap<&'static str, u64>,
    /// Differences without a rule.
    pub unexplained: Vec<Difference>,
}

fn line(d: &Difference) -> String {
    let Difference { number, item, .. } = d;
    format!(
        "  call {number}: {}\n    {item}: ours {}, reference {} (status {}, {})\n",
        d.text, d.ours, d.reference, d.statuses[0], d.statuses[1]
    )
}

impl Report {
    /// For people; with an example of each explained difference if asked.
    pub fn text(&self, examples: bool) -> String {
        let mut out = format!("{} calls (of which OK at ours):", self.calls);
        for (name, (all, ok)) in &self.by_procedure {
            out += &format!(" {name} {all} ({ok})");
        }
        out += "\nexplained differences, see docs/nfs-differential.md:\n";
        for (id, (times, first)) in &self.explained {
            out += &format!("  {id}: {times}\n");
            let of_rule = self.statuses.iter().filter(|((rule, ..), _)| rule == id);
            for ((_, procedure, [ours, reference]), n) in of_rule {
                out += &format!("    {procedure} {ours}, {reference}: {n}\n");
            }
            if examples {
                out += &line(first);
            }
        }
        let ended: Vec<String> = self.ended.iter().map(|(w, n)| format!("{w} {n}")).collect();
        out += &format!("directories left early: {}\n", ended.join(", "));
        out += &format!("unexplained differences: {}\n", self.unexplained.len());
        for d in &self.unexplained {
            out += &line(d);
        }
        out
    }
}

struct Side {
    client: NfsClient,
    root: Vec<u8>,
    verifier: Option<[u8; 8]>,
}

impl Side {
    fn call(&mut self, procedure: u32, args: &[u8]) -> Result<Reply, NfsClientError> {
        let answer = self.client.rpc.call((PROGRAM, 3, procedure), |e| {
            e.raw(args);
        });
        let mut d: Dec = match answer {
            Ok(d) => d,
            Err(ClientError::Refused(n)) => {
                return Ok(Reply {
                    status: 20_000u32.saturating_add(n),
                    ..Reply::default()
                });
            }
            Err(e) => return Err(e.into()),
        };
        match Reply::decode(procedure, &mut d) {
            Ok(r) => Ok(r),
            // An answer that is no answer is a finding, not the end.
            Err(_) => Ok(Reply {
                status: 30_000,
                ..Reply::default()
            }),
        }
    }

    /// A whole directory, entries in the order of their names; cookies go no further.
    fn list(&mut self, c: &Call, args: &[u8]) -> Result<Reply, NfsClientError> {
        let (mut cookie, mut verifier, mut all) = (0, [0; 8], Vec::<Entry>::new());
        for _ in 0..MOST_PAGES {
            let mut e = Enc::new();
            e.raw(args).u64(cookie).fixed(&verifier);
            match c.procedure {
                16 => e.u32(2048),
                _ => e.u32(1024).u32(4096),
            };
            let mut r = self.call(c.procedure, e.bytes())?;
            let Some(at) = r.items.iter().position(|(n, _)| *n == "entries") else {
                return Ok(r);
            };
            let (_, entries) = r.items.remove(at);
            if let Some(Value::Verifier(v)) = r.get("cookieverf") {
                verifier = *v;
            }
            if let Value::Entries(more) = entries {
                cookie = more.last().map_or(cookie, |e| e.cookie);
                all.extend(more);
            }
            if r.number("eof") == Some(1) {
                all.sort_by(|a, b| a.name.cmp(&b.name));
                r.items.retain(|(n, _)| *n != "cookieverf");
                r.items.push(("entries", Value::Entries(all)));
                return Ok(r);
            }
        }
        Ok(Reply {
            status: 30_001,
            ..Reply::default()
        })
    }
}

struct Run {
    sides: [Side; 2],
    rng: Rng,
    objects: Vec<Object>,
    /// Inode numbers of ours, and what they are at the reference.
    numbers: HashMap<u64, u64>,
    began: u64,
    epoch: u64,
    last: String,
    trace: bool,
    report: Report,
}

/// Makes the calls.
///
/// # Errors
/// [`RunError`].
pub fn compare(ours: &Url, reference: &Url, options: &Options) -> Result<Report, RunError> {
    let side = |n: usize, url: &Url| -> Result<Side, RunError> {
        // Servers ask for a port below 1024; whoever may not have one tries without.
        let client = NfsClient::mount(url, true).or_else(|_| NfsClient::mount(url, false));
        let client = client.map_err(|source| RunError::Server {
            which: WHICH[n],
            call: "mounting".into(),
            source,
        })?;
        Ok(Side {
            root: client.root.clone(),
            client,
            verifier: None,
        })
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut run = Run {
        sides: [side(0, ours)?, side(1, reference)?],
        rng: Rng::new(options.seed),
        objects: Vec::new(),
        numbers: HashMap::new(),
        began: now.map_or(0, |d| d.as_secs()),
        epoch: 0,
        last: String::new(),
        trace: options.trace,
        report: Report::default(),
    };
    run.all(options).map_err(|(n, source)| RunError::Server {
        which: WHICH[n],
        call: format!("call {}: {}", run.report.calls, run.last),
        source,
    })?;
    Ok(run.report)
}

type Sided<T> = Result<T, (usize, NfsClientError)>;

impl Run {
    fn all(&mut self, options: &Options) -> Sided<()> {
        let mut left = 0;
        while self.report.calls < options.calls && self.report.unexplained.len() < options.most {
            if left == 0 {
                self.fresh_directory(options.seed)?;
                left = EPOCH;
            }
            left -= 1;
            if !self.step()? {
                left = 0;
            }
        }
        Ok(())
    }

    /// A new directory at both, in which everyone may do everything.
    fn fresh_directory(&mut self, seed: u64) -> Sided<()> {
        self.epoch += 1;
        self.numbers.clear();
        let name = format!("differential-{}-{seed}-{}", self.began, self.epoch);
        let mut handle = [Vec::new(), Vec::new()];
        for s in SIDES {
            let side = &mut self.sides[s];
            side.client.rpc.credential = root_credential();
            let root = side.root.clone();
            let made = side.client.mkdir(&root, name.as_bytes());
            let fh = made.map_err(|e| (s, e))?;
            let mode = |e: &mut Enc| {
                e.opaque(&fh);
                put_sattr(e, Some(0o777), None);
                e.bool(false);
            };
            let set = side.client.call(2, "SETATTR", mode);
            set.map_err(|e| (s, e))?;
            handle[s] = fh;
        }
        self.objects = vec![Object {
            handle,
            ctime: [None; 2],
            kind: 2,
            name: "top".into(),
        }];
        Ok(())
    }

    /// One call at both; false if the trees may differ now.
    fn step(&mut self) -> Sided<bool> {
        let call = Maker {
            rng: &mut self.rng,
            objects: &self.objects,
        }
        .make();
        self.last.clone_from(&call.text);
        let number = self.report.calls;
        self.report.calls += 1;
        let mut replies = Vec::with_capacity(2);
        for s in SIDES {
            let side = &mut self.sides[s];
            side.client.rpc.credential = credential(call.uid);
            let answer = match call.procedure {
                16 | 17 => side.list(&call, &call.args[s]),
                p => side.call(p, &call.args[s]),
            };
            replies.push(answer.map_err(|e| (s, e))?);
        }
        let pair = [&replies[0], &replies[1]];
        let mut text = call.text.clone();
        if matches!(call.procedure, 1 | 4 | 16 | 17) && [pair[0].status, pair[1].status] == [0, 22]
        {
            // Nothing has changed since: whether it is refused for good is asked, not assumed.
            let side = &mut self.sides[1];
            let again = match call.procedure {
                p @ (1 | 4) => side.call(p, &call.args[1]),
                _ => side.list(&call, &call.args[1]),
            };
            text += &format!(" (asked again: {})", again.map_err(|e| (1, e))?.status);
        }
        let count = self
            .report
            .by_procedure
            .entry(PROCEDURES[call.procedure as usize])
            .or_default();
        count.0 += 1;
        count.1 += u64::from(pair[0].status == 0);
        let subject = call.subject.map_or(0, |n| self.objects[n].kind);
        if self.trace {
            println!(
                "{number} {}: {} {}",
                call.text, pair[0].status, pair[1].status
            );
        }
        let mut found = self.differences(&call, pair);
        if let Some(wrong) = end_of_file(&call, pair[0]) {
            found.push(wrong);
        }
        let statuses = pair.map(|r| r.status);
        let apart = statuses[0] != statuses[1] && statuses.contains(&0)
            || found.iter().any(|(item, ..)| {
                let lasts = LASTING.iter().any(|l| item.ends_with(l));
                lasts || matches!(call.procedure, 2 | 10) && item.ends_with("time")
            });
        let mut why_apart = "something unexplained";
        for (item, ours, reference) in found {
            let d = Difference {
                number,
                text: text.clone(),
                procedure: call.procedure,
                reach: call.reach,
                kind: subject,
                item,
                ours,
                reference,
                statuses: [pair[0].status, pair[1].status],
            };
            match explanation(&d) {
                Some(rule) => {
                    why_apart = rule.id;
                    if d.item == "status" {
                        let key = (rule.id, PROCEDURES[call.procedure as usize], statuses);
                        *self.report.statuses.entry(key).or_default() += 1;
                    }
                    let e = self.report.explained.entry(rule.id);
                    e.and_modify(|e| e.0 += 1).or_insert((1, d));
                }
                None => self.report.unexplained.push(d),
            }
        }
        // With a size that it refuses, nfs-ganesha cuts the file or makes the object all the same.
        let cut =
            matches!(call.procedure, 8..=11) && statuses[1] != 0 && call.text.contains(" size=");
        if cut {
            why_apart = "size-of-a-new-file";
        }
        let apart = apart || cut;
        if apart {
            let why = self.report.ended.entry(why_apart);
            *why.or_default() += 1;
        }
        self.learn(&call, pair)?;
        let changes = matches!(call.procedure, 2 | 7..=15);
        let harmless = !changes && pair[0].status != 0;
        Ok(!apart || harmless)
    }

    /// What both said about objects, and the new object, if both made one.
    fn learn(&mut self, call: &Call, pair: [&Reply; 2]) -> Sided<()> {
        if matches!(call.procedure, 2 | 7..=15) {
            for o in &mut self.objects {
                o.ctime = [None; 2];
            }
        }
        if let Some(o) = call.subject.and_then(|n| self.objects.get_mut(n)) {
            o.ctime = pair.map(|r| r.attr("attr").map(|a| a.times[2]));
        }
        let Some((kind, name)) = &call.makes else {
            return Ok(());
        };
        let mut handle = [Vec::new(), Vec::new()];
        for s in SIDES {
            match pair[s].get("handle") {
                Some(Value::Handle(Some(h))) => handle[s] = h.clone(),
                _ => return Ok(()),
            }
        }
        if self.objects.len() >= MOST_OBJECTS {
            let out = 1 + self.rng.below(MOST_OBJECTS as u64 - 1) as usize;
            self.objects.remove(out);
        }
        // CREATE of what exists gives what exists, whatever that is.
        let kind = pair[0].attr("attr").map_or(*kind, |a| a.kind);
        self.objects.push(Object {
            handle,
            ctime: [None; 2],
            kind,
            name: name.clone(),
        });
        Ok(())
    }

    fn differences(&mut self, call: &Call, pair: [&Reply; 2]) -> Vec<(String, String, String)> {
        let mut out = Vec::new();
        if pair[0].status != pair[1].status {
            let [a, b] = pair.map(|r| r.status.to_string());
            out.push(("status".to_owned(), a, b));
            return out;
        }
        for (name, ours) in &pair[0].items {
            let Some(other) = pair[1].get(name) else {
                out.push(((*name).to_owned(), "there".into(), "absent".into()));
                continue;
            };
            self.item(call, name, ours, other, &mut out);
        }
        out
    }

    fn item(
        &mut self,
        call: &Call,
        name: &str,
        ours: &Value,
        other: &Value,
        out: &mut Vec<(String, String, String)>,
    ) {
        let mut differ = |item: String, a: String, b: String| {
            if a != b {
                out.push((item, a, b));
            }
        };
        match (ours, other) {
            (Value::Number(a), Value::Number(b)) => {
                differ(name.to_owned(), a.to_string(), b.to_string());
            }
            (Value::Attr(Some(a)), Value::Attr(Some(b))) => {
                let made = call.makes.is_some() && name == "attr";
                for (item, a, b) in self.attributes(a, b, made) {
                    differ(format!("{name}.{item}"), a, b);
                }
            }
            (Value::Before(Some(a)), Value::Before(Some(b))) => {
                let times = |t: &[(u32, u32)]| t.iter().map(|t| self.time(*t)).collect::<String>();
                differ(format!("{name}.size"), a.0.to_string(), b.0.to_string());
                let item = format!("{name}.times");
                differ(item, times(&[a.1, a.2]), times(&[b.1, b.2]));
            }
            (Value::Attr(a), Value::Attr(b)) => {
                let [a, b] = [a, b].map(|a| presence(a.is_some()));
                differ(format!("{name}?"), a, b);
            }
            (Value::Before(a), Value::Before(b)) => {
                let [a, b] = [a, b].map(|a| presence(a.is_some()));
                differ(format!("{name}?"), a, b);
            }
            (Value::Handle(a), Value::Handle(b)) => {
                let [a, b] = [a, b].map(|a| presence(a.is_some()));
                differ(format!("{name}?"), a, b);
            }
            (Value::Verifier(a), Value::Verifier(b)) => {
                let new = [a, b];
                for s in SIDES {
                    let known = self.sides[s].verifier.replace(*new[s]);
                    if known.is_some_and(|k| k != *new[s]) {
                        differ(
                            name.to_owned(),
                            format!("{known:?}"),
                            format!("{:?}", new[s]),
                        );
                    }
                }
            }
            (Value::Entries(a), Value::Entries(b)) => {
                let names = |of: &[Entry]| {
                    let shown = of.iter().map(|e| String::from_utf8_lossy(&e.name));
                    shown.collect::<Vec<_>>().join(" ")
                };
                differ("names".into(), names(a), names(b));
                for (a, b) in a.iter().zip(b).filter(|(a, b)| a.name == b.name) {
                    // Of ".." of the top both servers say what they want: it is above the top.
                    let (Some(a), Some(b)) = (&a.attr, &b.attr) else {
                        continue;
                    };
                    if a.kind == 2 && b.kind == 2 {
                        continue;
                    }
                    for (item, a, b) in self.attributes(a, b, false) {
                        differ(format!("entry.{item}"), a, b);
                    }
                }
            }
            (a, b) => differ(name.to_owned(), short(a), short(b)),
        }
    }

    /// Times that a client set are told as they are; those of the servers' clocks are "now".
    fn time(&self, t: (u32, u32)) -> String {
        match u64::from(t.0).abs_diff(self.began) < OWN_TIME {
            true => "now ".into(),
            false => format!("{}.{:09} ", t.0, t.1),
        }
    }

    fn attributes(
        &mut self,
        a: &Fattr,
        b: &Fattr,
        made: bool,
    ) -> Vec<(&'static str, String, String)> {
        let n = |n: u64| n.to_string();
        let mut out = vec![
            ("type", n(a.kind.into()), n(b.kind.into())),
            ("mode", format!("{:o}", a.mode), format!("{:o}", b.mode)),
            ("nlink", n(a.nlink.into()), n(b.nlink.into())),
            ("uid", n(a.uid.into()), n(b.uid.into())),
            ("gid", n(a.gid.into()), n(b.gid.into())),
        ];
        let directories = a.kind == 2 && b.kind == 2;
        let size = if directories {
            "size-of-directory"
        } else {
            "size"
        };
        out.push((size, n(a.size), n(b.size)));
        if !directories {
            out.push(("used", n(a.used), n(b.used)));
        }
        for (at, name) in ["atime", "mtime", "ctime"].into_iter().enumerate() {
            out.push((name, self.time(a.times[at]), self.time(b.times[at])));
        }
        // A number may be used again for a new object.
        if made {
            self.numbers.insert(a.fileid, b.fileid);
        }
        let known = *self.numbers.entry(a.fileid).or_insert(b.fileid);
        out.push(("fileid", n(known), n(b.fileid)));
        out
    }
}

/// RFC 1813, 3.3.6: "end of file" is said exactly when nothing follows what was read.
fn end_of_file(call: &Call, ours: &Reply) -> Option<(String, String, String)> {
    let (attr, count) = (ours.attr("attr")?, ours.number("count")?);
    let eof = ours.number("eof").filter(|_| call.procedure == 6)?;
    let right = u64::from(call.reach.saturating_add(count) >= attr.size);
    (eof != right).then(|| ("eof-itself".into(), eof.to_string(), right.to_string()))
}

fn presence(there: bool) -> String {
    if there { "there" } else { "absent" }.to_owned()
}

fn short(v: &Value) -> String {
    match v {
        Value::Bytes(b) => {
            let shown: String = b.iter().take(24).map(|b| format!("{b:02x}")).collect();
            format!("{} bytes {shown}", b.len())
        }
        other => format!("{other:?}"),
    }
}
