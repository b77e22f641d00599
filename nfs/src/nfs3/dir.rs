//! READDIR and READDIRPLUS.
//!
//! Cookies are the file system's: stable for as long as the entry lives, the same on every node,
//! so the cookie verifier is always zero and no listing ever has to start again.
//! A reply holds at least one entry or says TOOSMALL: a client never loops.

use trivet_fs::{DirEntry, DirPage};

use super::Nfs3;
use super::types::{Status, put_attr, put_post};
use crate::handle::HANDLE_BYTES;
use crate::rpc::Call;
use crate::xdr::{Enc, XdrResult, padded};

/// Bytes of a listing, at most, whatever the client asks for.
const MAX_REPLY: u32 = 1 << 20;
/// Entries asked of the file system at once, at most.
const MAX_ENTRIES: usize = 4096;
/// Bytes of `fattr3`.
const ATTR_BYTES: usize = 84;

struct Listing {
    cookie: u64,
    /// Bytes of names and cookies (READDIRPLUS), at most.
    dir_count: u32,
    /// Bytes of the reply, at most.
    max_count: u32,
    plus: bool,
}

impl Nfs3 {
    pub(super) fn readdir(&self, call: Call, plus: bool) {
        let mut d = call.head.args.clone();
        let args = || -> XdrResult<_> {
            let who = self.caller(&call, &mut d)?;
            let cookie = d.u64()?;
            d.fixed::<8>()?;
            let first = d.u32()?;
            let max_count = if plus { d.u32()? } else { first };
            Ok((
                who,
                Listing {
                    cookie,
                    dir_count: first,
                    max_count: max_count.min(MAX_REPLY),
                    plus,
                },
            ))
        }();
        call.with_args(args, |mut call, (who, list)| {
            let who = match who {
                Ok(who) => who,
                Err(status) => return self.fail(call, status, |e| put_post(e, 0, None)),
            };
            call.replier.charge(list.max_count as usize);
            let smallest = if plus { 28 + 4 + ATTR_BYTES } else { 24 };
            let max = (list.max_count as usize / smallest).clamp(1, MAX_ENTRIES);
            let page = self
                .fs
                .readdir(&who.creds, who.id(), list.cookie, max, plus);
            let mut page = match page {
                Ok(p) => p,
                Err(error) => return self.fail_post(call, &error, who.id()),
            };
            if self.is_export_root(who.handle) {
                stay_inside(&mut page);
            }
            let mut e = call.success();
            let start = e.len();
            e.u32(0);
            put_post(&mut e, self.fsid, Some(&page.dir));
            e.fixed(&[0; 8]);
            match self.put_entries(&mut e, start, &page, &list, who.handle.export) {
                Ok(()) => call.replier.send(e.bytes(), None),
                Err(status) => self.fail(call, status, |e| {
                    put_post(e, self.fsid, Some(&page.dir));
                }),
            }
        });
    }

    /// Writes as many entries as the client has room for.
    fn put_entries(
        &self,
        e: &mut Enc,
        start: usize,
        page: &DirPage,
        list: &Listing,
        export: u32,
    ) -> Result<(), Status> {
        // The end mark and the flag at the end.
        let room = (list.max_count as usize).saturating_sub(8);
        let mut names = 0;
        for (n, entry) in page.entries.iter().enumerate() {
            let name = 24 + padded(entry.name.len());
            let mut size = name;
            if list.plus {
                size += 8 + entry.attr.map_or(0, |_| ATTR_BYTES + 4 + HANDLE_BYTES);
            }
            let fits = e.len() - start + size <= room;
            let names_fit = !list.plus || names + name <= list.dir_count as usize || n == 0;
            if !fits || !names_fit {
                if n == 0 {
                    return Err(Status::TooSmall);
                }
                e.bool(false).bool(false);
                return Ok(());
            }
            names += name;
            self.put_entry(e, entry, list.plus, export);
        }
        if page.entries.is_empty() && e.len() - start > room {
            return Err(Status::TooSmall);
        }
        e.bool(false).bool(page.eof);
        Ok(())
    }

    fn put_entry(&self, e: &mut Enc, entry: &DirEntry, plus: bool, export: u32) {
        e.bool(true).u64(entry.id.ino.0).opaque(&entry.name);
        e.u64(entry.cookie);
        if !plus {
            return;
        }
        e.bool(entry.attr.is_some());
        match &entry.attr {
            Some(attr) => {
                put_attr(e, self.fsid, attr);
                self.put_handle(e, &self.seal(export, attr.id));
            }
            None => {
                e.bool(false);
            }
        }
    }
}

/// `..` of an export's directory is the directory itself.
fn stay_inside(page: &mut DirPage) {
    for entry in page.entries.iter_mut().filter(|e| &e.name[..] == b"..") {
        entry.id = page.dir.id;
        if entry.attr.is_some() {
            entry.attr = Some(page.dir);
        }
    }
}
