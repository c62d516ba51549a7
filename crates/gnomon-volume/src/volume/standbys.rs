//! The standbys of a protected guest's disk, as its primary has them: one at each node of a shadow, each with a book of its
//! own of what it lacks.
//!
//! ```text
//!   Primary ──begin_standby(b)──► Tracked: b ──begin_standby(c)──► Tracked: b, c ──end_standby(b)──► Tracked: c ──► …
//! ```
//! A write is noted for all of them before it is made. What a turn on its way still needs of the old content is copied for
//! each that needs it: [`crate::standby::COPIES`] of memory for each standby, at most.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Engine, Follower, Lost, Role, Volume, VolumeError, beside};

/// Between a volume's file and the node of a standby, in the name of the file that says what that lacks.
const OWED: &str = "owed-";

impl Volume {
    /// A standby at a node begins, or goes on: writes are noted for it from now on. A new one is owed everything. Refused
    /// for a volume that is not this host's to write, or that is being moved.
    pub fn begin_standby(&self, node: &str) -> Result<Follower, VolumeError> {
        if let Some(known) = self.standby(node) {
            return Ok(known);
        }
        let (epoch, role) = self.disk.state();
        let is_moved = self.engine.lock().outbox.is_some();
        if is_moved || !matches!(role, Role::Primary | Role::Tracked(_)) {
            return Err(self.wrong_role(&role, "keeping a standby of it"));
        }
        let path = self.owed_to(node);
        if !path.exists() {
            self.owe_everything(&path)?;
        }
        let follower = Follower { outbox: self.open_outbox_in(&path, Lost::SetAll)?, turns: Arc::default() };
        // Held until the role is in force, so that standbys that come and go at once leave those that there are.
        let mut engine = self.engine.lock();
        engine.standbys.insert(node.to_string(), follower.clone());
        self.disk.become_role(epoch, self.role_of(&engine))?;
        Ok(follower)
    }

    /// A standby is given up; without others the volume is as if there had been none. Its engine has been stopped. Does
    /// nothing when there is none at that node.
    pub fn end_standby(&self, node: &str) -> Result<(), VolumeError> {
        let mut engine = self.engine.lock();
        let (epoch, role) = self.disk.state();
        if engine.standbys.remove(node).is_some() && matches!(role, Role::Tracked(_)) {
            self.disk.become_role(epoch, self.role_of(&engine))?;
        }
        drop(engine);
        self.remove(&self.owed_to(node))
    }

    /// The standby at a node, if there is one.
    pub fn standby(&self, node: &str) -> Option<Follower> {
        self.engine.lock().standbys.get(node).cloned()
    }

    /// A volume that was shadowed when its daemon ended goes on to note what is written: for its standbys, or for the peer
    /// of a move.
    pub(super) fn resume_shadowed(&self) -> Result<(), VolumeError> {
        let found = found_beside(&self.parts.path).map_err(|source| self.io(source))?;
        if found.is_empty() {
            return self.begin_shadow().map(drop);
        }
        found.iter().try_for_each(|(node, _)| self.begin_standby(node).map(drop))
    }

    fn role_of(&self, engine: &Engine) -> Role {
        match engine.standbys.is_empty() {
            true => Role::Primary,
            false => self.tracked(engine.standbys.values().cloned().collect()),
        }
    }

    fn owed_to(&self, node: &str) -> PathBuf {
        beside(&self.parts.path, &format!("{OWED}{node}"))
    }
}

/// The nodes of standbys of the volume in `path`, as the files beside it say, and those files.
pub(super) fn found_beside(path: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let prefix = beside(path, OWED);
    let (Some(folder), Some(prefix)) = (path.parent(), prefix.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    // A name without a folder is in this one.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if let Some(node) = entry.file_name().to_str().and_then(|name| name.strip_prefix(prefix)) {
            found.push((node.to_string(), entry.path()));
        }
    }
    Ok(found)
}
