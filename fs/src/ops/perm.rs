//! Who may do what: mode bits, ACLs, sticky directories, set-id bits. One home for these rules.

use super::acl::{ACCESS, Acl};
use crate::api::{Access, Creds, Ino};
use crate::core::Core;
use crate::error::{FsError, FsResult};
use crate::format::inode::Inode;

/// Set-user-id bit.
pub(crate) const S_ISUID: u32 = 0o4000;
/// Set-group-id bit.
pub(crate) const S_ISGID: u32 = 0o2000;
/// Sticky bit.
pub(crate) const S_ISVTX: u32 = 0o1000;

impl Inode {
    /// What a write or chown by an unprivileged caller does to set-id bits.
    pub(crate) fn clear_set_ids(&mut self, creds: &Creds) {
        if creds.kill || (creds.uid != 0 && !creds.checked) {
            self.drop_set_ids();
        }
    }

    /// The same where all groups of the caller are known: of one outside the file's it takes the
    /// group's bit whatever that means, as Linux does.
    pub(crate) fn clear_set_ids_by(&mut self, creds: &Creds) {
        self.clear_set_ids(creds);
        if creds.kill && !creds.in_group(self.gid) {
            self.mode &= !S_ISGID;
        }
    }

    /// Clears them: the group's only where it means execution (else it marks mandatory locks).
    pub(crate) fn drop_set_ids(&mut self) {
        self.mode &= !S_ISUID;
        if self.mode & 0o010 != 0 {
            self.mode &= !S_ISGID;
        }
    }
}

impl Core {
    /// Of the kinds of access in `want`, those that the caller has.
    pub(crate) fn allowed(
        &self,
        creds: &Creds,
        ino: Ino,
        inode: &Inode,
        want: Access,
    ) -> FsResult<Access> {
        if creds.uid == 0 {
            let runs = inode.is_dir() || inode.mode & 0o111 != 0;
            let all = Access::READ | Access::WRITE;
            return Ok(want.and(if runs { all | Access::EXEC } else { all }));
        }
        let acl = match inode.xattrs > 0 && inode.mode & 0o070 != 0 {
            true => self.acl(ino, inode, ACCESS)?,
            false => None,
        };
        let acl = acl.unwrap_or_else(|| Acl::of_mode(inode.mode));
        let has = |bit: Access| want.has(bit) && acl.permits(creds, inode.uid, inode.gid, bit.0);
        let mut got = Access::NONE;
        for bit in [Access::READ, Access::WRITE, Access::EXEC] {
            if has(bit) {
                got = got | bit;
            }
        }
        Ok(got)
    }

    /// Fails with EACCES unless the caller has all of `want`.
    pub(crate) fn check(
        &self,
        creds: &Creds,
        ino: Ino,
        inode: &Inode,
        want: Access,
    ) -> FsResult<()> {
        if creds.checked || self.allowed(creds, ino, inode, want)?.has(want) {
            return Ok(());
        }
        Err(FsError::Access)
    }

    /// As [`Core::check`] for reading or writing content.
    pub(crate) fn check_io(
        &self,
        creds: &Creds,
        ino: Ino,
        inode: &Inode,
        want: Access,
    ) -> FsResult<()> {
        if creds.stateless {
            if creds.uid == inode.uid {
                return Ok(());
            }
            if want == Access::READ && self.check(creds, ino, inode, Access::EXEC).is_ok() {
                return Ok(());
            }
        }
        self.check(creds, ino, inode, want)
    }

    /// May the caller change this directory's entries?
    pub(crate) fn check_dir_write(&self, creds: &Creds, ino: Ino, dir: &Inode) -> FsResult<()> {
        self.check(creds, ino, dir, Access::WRITE | Access::EXEC)
    }
}

/// In a sticky directory only the owner of the entry or of the directory may take it away.
pub(crate) fn check_sticky(creds: &Creds, dir: &Inode, target: &Inode) -> FsResult<()> {
    let free = creds.checked
        || creds.uid == 0
        || dir.mode & S_ISVTX == 0
        || creds.uid == target.uid
        || creds.uid == dir.uid;
    match free {
        true => Ok(()),
        false => Err(FsError::NotPermitted),
    }
}

/// Only the owner (or root) may.
pub(crate) fn check_owner(creds: &Creds, inode: &Inode) -> FsResult<()> {
    match creds.checked || creds.uid == 0 || creds.uid == inode.uid {
        true => Ok(()),
        false => Err(FsError::NotPermitted),
    }
}
