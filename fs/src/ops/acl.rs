//! POSIX ACLs, stored as the extended attributes that Linux uses for them, and enforced.
//!
//! Value: version u32 (2), then entries: tag u16, permissions u16, id u32, little-endian.

use crate::api::{Creds, Ino};
use crate::core::Core;
use crate::error::{FsError, FsResult};
use crate::format::inode::Inode;
use crate::format::{u16_at, u32_at};

/// Name of the access ACL.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// Name of a directory's default ACL.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u32,
    id: u32,
}

/// A list, in canonical order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl(Vec<Entry>);

impl Acl {
    /// The list that mode bits alone amount to.
    pub fn of_mode(mode: u32) -> Acl {
        let entry = |tag, shift: u32| Entry {
            tag,
            perm: mode >> shift & 7,
            id: NO_ID,
        };
        Acl(vec![
            entry(USER_OBJ, 6),
            entry(GROUP_OBJ, 3),
            entry(OTHER, 0),
        ])
    }

    /// From an attribute's value.
    pub fn parse(value: &[u8]) -> FsResult<Acl> {
        let bad = Err(FsError::Invalid("not a POSIX ACL"));
        if value.len() < 4 || u32_at(value, 0) != 2 || !(value.len() - 4).is_multiple_of(8) {
            return bad;
        }
        let entries: Vec<Entry> = value[4..]
            .chunks(8)
            .map(|e| Entry {
                tag: u16_at(e, 0),
                perm: u32::from(u16_at(e, 2)),
                id: u32_at(e, 4),
            })
            .collect();
        let count = |tag| entries.iter().filter(|e| e.tag == tag).count();
        let sorted = entries.windows(2).all(|w| {
            w[0].tag < w[1].tag
                || (w[0].tag == w[1].tag && matches!(w[0].tag, USER | GROUP) && w[0].id != w[1].id)
        });
        let known = [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER];
        let fine = sorted
            && entries
                .iter()
                .all(|e| known.contains(&e.tag) && e.perm <= 7)
            && [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|t| count(*t) == 1)
            && (count(MASK) == 1 || count(USER) + count(GROUP) == 0 && count(MASK) == 0);
        match fine {
            true => Ok(Acl(entries)),
            false => bad,
        }
    }

    /// The attribute's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = 2u32.to_le_bytes().to_vec();
        for e in &self.0 {
            out.extend_from_slice(&e.tag.to_le_bytes());
            out.extend_from_slice(&(e.perm as u16).to_le_bytes());
            out.extend_from_slice(&e.id.to_le_bytes());
        }
        out
    }

    fn perm(&self, tag: u16) -> Option<u32> {
        self.0.iter().find(|e| e.tag == tag).map(|e| e.perm)
    }

    fn perm_mut(&mut self, tag: u16) -> Option<&mut u32> {
        self.0
            .iter_mut()
            .find(|e| e.tag == tag)
            .map(|e| &mut e.perm)
    }

    /// Whether mode bits say the same.
    pub fn is_plain(&self) -> bool {
        self.0.len() == 3
    }

    /// The permission bits that stand for it: the group's are the mask's where there is one.
    pub fn mode(&self) -> u32 {
        let group = self.perm(MASK).or(self.perm(GROUP_OBJ)).unwrap_or(0);
        let (user, other) = (self.perm(USER_OBJ), self.perm(OTHER));
        user.unwrap_or(0) << 6 | group << 3 | other.unwrap_or(0)
    }

    /// What chmod does to it.
    pub fn set_mode(&mut self, mode: u32) {
        let group = if self.perm(MASK).is_some() {
            MASK
        } else {
            GROUP_OBJ
        };
        for (tag, shift) in [(USER_OBJ, 6), (group, 3), (OTHER, 0)] {
            if let Some(p) = self.perm_mut(tag) {
                *p = mode >> shift & 7;
            }
        }
    }

    /// What a new object's mode leaves of an inherited list.
    pub fn limit(&mut self, mode: u32) {
        let group = if self.perm(MASK).is_some() {
            MASK
        } else {
            GROUP_OBJ
        };
        for (tag, shift) in [(USER_OBJ, 6), (group, 3), (OTHER, 0)] {
            if let Some(p) = self.perm_mut(tag) {
                *p &= mode >> shift & 7;
            }
        }
    }

    /// Whether it gives the caller this permission bit on an object of this owner and group.
    pub fn permits(&self, creds: &Creds, uid: u32, gid: u32, bit: u32) -> bool {
        let of = |tag| self.perm(tag).unwrap_or(0);
        if creds.uid == uid {
            return of(USER_OBJ) & bit == bit;
        }
        let mask = self.perm(MASK).unwrap_or(7);
        let named = self.0.iter().find(|e| e.tag == USER && e.id == creds.uid);
        if let Some(e) = named {
            return e.perm & mask & bit == bit;
        }
        let mine = |e: &&Entry| match e.tag {
            GROUP_OBJ => creds.in_group(gid),
            GROUP => creds.in_group(e.id),
            _ => false,
        };
        let mut groups = self.0.iter().filter(mine).peekable();
        match groups.peek() {
            Some(_) => groups.any(|e| e.perm & mask & bit == bit),
            None => of(OTHER) & bit == bit,
        }
    }
}

impl Core {
    /// An inode's ACL of this name, if it has one.
    pub(crate) fn acl(&self, ino: Ino, inode: &Inode, name: &[u8]) -> FsResult<Option<Acl>> {
        if inode.xattrs == 0 {
            return Ok(None);
        }
        self.xattr(ino, name)?.map(|v| Acl::parse(&v)).transpose()
    }

    /// Keeps the access ACL in step with new mode bits.
    pub(crate) fn chmod_acl(&mut self, ino: Ino, inode: &mut Inode) -> FsResult<()> {
        if let Some(mut acl) = self.acl(ino, inode, ACCESS)? {
            acl.set_mode(inode.mode);
            self.put_xattr(ino, inode, ACCESS, &acl.encode())?;
        }
        Ok(())
    }

    /// Gives a new object what its directory's default ACL asks for; else applies the umask.
    pub(crate) fn inherit_acl(
        &mut self,
        (dir, dir_inode): (Ino, &Inode),
        (ino, inode): (Ino, &mut Inode),
        umask: u32,
    ) -> FsResult<()> {
        let Some(default) = self.acl(dir, dir_inode, DEFAULT)? else {
            inode.mode &= !(umask & 0o777);
            return Ok(());
        };
        let mut access = default.clone();
        access.limit(inode.mode);
        inode.mode = inode.mode & !0o777 | access.mode();
        if !access.is_plain() {
            self.put_xattr(ino, inode, ACCESS, &access.encode())?;
        }
        if inode.is_dir() {
            self.put_xattr(ino, inode, DEFAULT, &default.encode())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u32, u32)]) -> Vec<u8> {
        let entries = entries
            .iter()
            .map(|&(tag, perm, id)| Entry { tag, perm, id });
        Acl(entries.collect()).encode()
    }

    #[test]
    fn the_mask_limits_named_users_and_groups_but_not_the_owner() {
        let value = list(&[
            (USER_OBJ, 7, NO_ID),
            (USER, 6, 5),
            (GROUP_OBJ, 7, NO_ID),
            (GROUP, 2, 9),
            (MASK, 4, NO_ID),
            (OTHER, 1, NO_ID),
        ]);
        let acl = Acl::parse(&value).unwrap();
        assert_eq!(acl.encode(), value);
        assert_eq!(acl.mode(), 0o741);
        let may = |c: &Creds, bit| acl.permits(c, 1, 2, bit);
        assert!(may(&Creds::user(1, 0, &[]), 2));
        let named = Creds::user(5, 0, &[]);
        assert!(may(&named, 4) && !may(&named, 2));
        // Of a group that the list names, even "other" rights are not had.
        assert!(!may(&Creds::user(8, 9, &[]), 1));
        assert!(may(&Creds::user(8, 3, &[]), 1));
    }

    #[test]
    fn malformed_lists_are_refused() {
        let two_owners = list(&[(USER_OBJ, 7, NO_ID), (USER_OBJ, 7, NO_ID)]);
        let no_mask = list(&[
            (USER_OBJ, 7, NO_ID),
            (USER, 7, 3),
            (GROUP_OBJ, 7, NO_ID),
            (OTHER, 7, NO_ID),
        ]);
        for bad in [&b""[..], b"\x02\0\0\0x", &two_owners, &no_mask] {
            assert!(Acl::parse(bad).is_err());
        }
    }
}
