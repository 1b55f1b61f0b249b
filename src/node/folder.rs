//! A node's data folder: where its key, database and admin endpoint are written down.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use argus_protocols::Role;

/// ```text
/// node.key      the libp2p identity (identity.rs)
/// db/           RocksDB (store.rs)
/// admin.json    address and token of the running node's admin endpoint (admin.rs), 0600
/// ```
#[derive(Clone, Debug)]
pub struct DataFolder(PathBuf);

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("cannot use {path} as data folder: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("no --data-dir was given and there is no home folder to take a default from")]
    NoHome,
}

impl DataFolder {
    /// The folder given, or the role's default under the home folder.
    pub fn locate(given: Option<&Path>, role: Role) -> Result<Self, FolderError> {
        if let Some(path) = given {
            return Ok(Self(path.to_owned()));
        }
        let home = std::env::home_dir().ok_or(FolderError::NoHome)?;
        let name = match role {
            Role::Miner => "miner",
            Role::Validator => "validator",
            Role::Relay => "relay",
        };
        Ok(Self(home.join(".argus").join(name)))
    }

    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Makes the folder, for its owner alone.
    pub fn create(&self) -> Result<(), FolderError> {
        let fail = |source| FolderError::Io { path: self.0.clone(), source };
        fs::create_dir_all(&self.0).map_err(fail)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700)).map_err(fail)?;
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn database(&self) -> PathBuf {
        self.0.join("db")
    }

    pub fn admin(&self) -> PathBuf {
        self.0.join("admin.json")
    }
}
