//! Answers, taken apart into named items. Strict: what RFC 1813 does not have at this place, or
//! bytes behind the end, make an answer malformed.

use trivet_nfs::client::nfs::{Fattr, get_fattr, get_post, get_wcc};
use trivet_nfs::xdr::{Dec, XdrError, XdrResult};

/// One item of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number or a boolean.
    Number(u64),
    /// Content, a link's target.
    Bytes(Vec<u8>),
    /// Attributes, if they were sent.
    Attr(Option<Fattr>),
    /// Attributes before the call: size, mtime, ctime, if they were sent.
    Before(Option<trivet_nfs::client::nfs::Before>),
    /// A handle, if one was sent.
    Handle(Option<Vec<u8>>),
    /// A verifier.
    Verifier([u8; 8]),
    /// Entries of a directory.
    Entries(Vec<Entry>),
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: Vec<u8>,
    /// Inode number.
    pub fileid: u64,
    /// Where to go on behind it.
    pub cookie: u64,
    /// READDIRPLUS: attributes, if they were sent.
    pub attr: Option<Fattr>,
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// `nfsstat3`; or 20,000 and `accept_stat` if the call was refused on the RPC level.
    pub status: u32,
    /// Items by name.
    pub items: Vec<(&'static str, Value)>,
}

impl Reply {
    /// The item of this name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.items.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// The attributes of this name.
    pub fn attr(&self, name: &str) -> Option<&Fattr> {
        match self.get(name) {
            Some(Value::Attr(a)) => a.as_ref(),
            _ => None,
        }
    }

    /// The number of this name.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.get(name) {
            Some(Value::Number(n)) => Some(*n),
            _ => None,
        }
    }

    /// Takes the answer to `procedure` apart.
    ///
    /// # Errors
    /// It is malformed.
    pub fn decode(procedure: u32, d: &mut Dec) -> XdrResult<Reply> {
        let status = d.u32()?;
        let mut r = Reply {
            status,
            items: Vec::new(),
        };
        match status {
            0 => r.ok(procedure, d)?,
            _ => r.failed(procedure, d)?,
        }
        match d.is_empty() {
            true => Ok(r),
            false => Err(XdrError::BadValue(d.rest().len() as u32)),
        }
    }

    fn add(&mut self, name: &'static str, value: Value) {
        self.items.push((name, value));
    }

    fn post(&mut self, name: &'static str, d: &mut Dec) -> XdrResult<()> {
        self.add(name, Value::Attr(get_post(d)?));
        Ok(())
    }

    fn wcc(&mut self, names: (&'static str, &'static str), d: &mut Dec) -> XdrResult<()> {
        let (before, after) = get_wcc(d)?;
        self.add(names.0, Value::Before(before));
        self.add(names.1, Value::Attr(after));
        Ok(())
    }

    fn numbers32(&mut self, names: &[&'static str], d: &mut Dec) -> XdrResult<()> {
        for name in names {
            let n = u64::from(d.u32()?);
            self.add(name, Value::Number(n));
        }
        Ok(())
    }

    fn bools(&mut self, names: &[&'static str], d: &mut Dec) -> XdrResult<()> {
        for name in names {
            let n = u64::from(d.bool()?);
            self.add(name, Value::Number(n));
        }
        Ok(())
    }

    fn ok(&mut self, procedure: u32, d: &mut Dec) -> XdrResult<()> {
        match procedure {
            1 => self.add("attr", Value::Attr(Some(get_fattr(d)?))),
            3 => {
                self.add("handle", Value::Handle(Some(d.opaque(64)?)));
                self.post("attr", d)?;
                self.post("dir", d)?;
            }
            4 => {
                self.post("attr", d)?;
                self.numbers32(&["access"], d)?;
            }
            5 => {
                self.post("attr", d)?;
                self.add("target", Value::Bytes(d.opaque(1 << 20)?));
            }
            6 => {
                self.post("attr", d)?;
                self.numbers32(&["count"], d)?;
                self.bools(&["eof"], d)?;
                self.add("data", Value::Bytes(d.opaque(1 << 20)?));
            }
            7 => {
                self.wcc(("before", "attr"), d)?;
                self.numbers32(&["count", "committed"], d)?;
                self.add("verifier", Value::Verifier(d.fixed()?));
            }
            8..=11 => {
                let handle = d.bool()?.then(|| d.opaque(64)).transpose()?;
                self.add("handle", Value::Handle(handle));
                self.post("attr", d)?;
                self.wcc(("dir-before", "dir"), d)?;
            }
            16 | 17 => self.entries(procedure == 17, d)?,
            18 => {
                self.post("attr", d)?;
                for name in ["tbytes", "fbytes", "abytes", "tfiles", "ffiles", "afiles"] {
                    let n = d.u64()?;
                    self.add(name, Value::Number(n));
                }
                self.numbers32(&["invarsec"], d)?;
            }
            19 => {
                self.post("attr", d)?;
                let sizes = [
                    "rtmax", "rtpref", "rtmult", "wtmax", "wtpref", "wtmult", "dtpref",
                ];
                self.numbers32(&sizes, d)?;
                let most = d.u64()?;
                self.add("maxfilesize", Value::Number(most));
                self.numbers32(&["delta-s", "delta-ns", "properties"], d)?;
            }
            20 => {
                self.post("attr", d)?;
                self.numbers32(&["linkmax", "name-max"], d)?;
                let flags = [
                    "no-trunc",
                    "chown-restricted",
                    "case-insensitive",
                    "case-preserving",
                ];
                self.bools(&flags, d)?;
            }
            21 => {
                self.wcc(("before", "attr"), d)?;
                self.add("verifier", Value::Verifier(d.fixed()?));
            }
            // Their results have the same form in both arms.
            _ => self.failed(procedure, d)?,
        }
        Ok(())
    }

    fn failed(&mut self, procedure: u32, d: &mut Dec) -> XdrResult<()> {
        match procedure {
            2 | 7 | 21 => self.wcc(("before", "attr"), d),
            3 => self.post("dir", d),
            4..=6 | 16..=20 => self.post("attr", d),
            8..=13 => self.wcc(("dir-before", "dir"), d),
            14 => {
                self.wcc(("dir-before", "dir"), d)?;
                self.wcc(("to-before", "to"), d)
            }
            15 => {
                self.post("attr", d)?;
                self.wcc(("dir-before", "dir"), d)
            }
            _ => Ok(()),
        }
    }

    fn entries(&mut self, plus: bool, d: &mut Dec) -> XdrResult<()> {
        self.post("attr", d)?;
        self.add("cookieverf", Value::Verifier(d.fixed()?));
        let mut all = Vec::new();
        while d.bool()? {
            let (fileid, name, cookie) = (d.u64()?, d.opaque(255)?, d.u64()?);
            let attr = if plus { get_post(d)? } else { None };
            if plus && d.bool()? {
                d.opaque(64)?;
            }
            all.push(Entry {
                name,
                fileid,
                cookie,
                attr,
            });
        }
        self.add("entries", Value::Entries(all));
        self.bools(&["eof"], d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trivet_nfs::xdr::Enc;

    #[test]
    fn an_answer_decodes_to_its_last_byte_or_is_malformed() {
        let mut e = Enc::new();
        e.u32(2).bool(false);
        let good = e.bytes().to_vec();
        let decode = |b: &[u8]| Reply::decode(3, &mut Dec::new(b.to_vec().into()));
        assert!(decode(&good).is_ok_and(|r| r.status == 2));
        assert!(decode(&good[..4]).is_err(), "the failure arm is missing");
        assert!(decode(&[&good[..], &[0; 4]].concat()).is_err());
    }
}
