//! The node's host key: ed25519, in OpenSSH's format, mode 0600; its fingerprint is the node's id.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pleach_protocol::version::NodeId;
use russh::keys::ssh_key::{self, Algorithm, HashAlg, LineEnding, PrivateKey};

/// Says why there is no usable host key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Others may read the key.
    #[error("{path} is readable by others (mode {mode:04o}); run: chmod 600 {path}")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file holds no OpenSSH private key.
    #[error("{path} is not an OpenSSH private key: {source}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: ssh_key::Error,
    },
    /// The key is of another kind.
    #[error("{path} is an {algorithm} key; a node's key is ed25519")]
    Algorithm {
        /// The file.
        path: PathBuf,
        /// What it is.
        algorithm: String,
    },
}

/// A host key.
#[derive(Debug)]
pub struct HostKey {
    key: PrivateKey,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> KeyError {
    let path = path.to_path_buf();
    move |source| KeyError::Io { path, source }
}

/// Where a state directory keeps its key.
#[must_use]
pub fn path_in(state: &Path) -> PathBuf {
    state.join("host_key")
}

impl HostKey {
    /// Reads the key in a state directory.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load(state: &Path) -> Result<Self, KeyError> {
        let path = path_in(state);
        let mode = fs::metadata(&path).map_err(io_error(&path))?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path, mode });
        }
        let text = fs::read(&path).map_err(io_error(&path))?;
        let key = PrivateKey::from_openssh(&text).map_err(|source| KeyError::Format { path: path.clone(), source })?;
        if key.algorithm() != Algorithm::Ed25519 {
            return Err(KeyError::Algorithm { path, algorithm: key.algorithm().to_string() });
        }
        Ok(Self { key })
    }

    /// Reads the key, making it first where there is none.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load_or_create(state: &Path, comment: &str) -> Result<Self, KeyError> {
        match fs::symlink_metadata(path_in(state)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Self::create(state, comment)?;
                Self::load(state)
            }
            _ => Self::load(state),
        }
    }

    /// Makes a key; one that is there stays as it is.
    fn create(state: &Path, comment: &str) -> Result<(), KeyError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(io_error(state))?;
        let path = path_in(state);
        let format = |source| KeyError::Format { path: path.clone(), source };
        let mut key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).map_err(format)?;
        key.set_comment(comment);
        let text = key.to_openssh(LineEnding::LF).map_err(format)?;
        let staged = state.join(format!(".host_key.{}", std::process::id()));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            // A link, not a rename: whoever was first keeps the name.
            let linked = fs::hard_link(&staged, &path);
            fs::remove_file(&staged)?;
            match linked {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            File::open(state)?.sync_all()
        };
        write().map_err(io_error(&path))
    }

    /// Replaces the key; the old one is kept beside it. Returns the new one and where the old is.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn replace(state: &Path, comment: &str, stamp: u64) -> Result<(Self, Option<PathBuf>), KeyError> {
        let path = path_in(state);
        let aside = state.join(format!("host_key.old-{stamp}"));
        let old = match fs::rename(&path, &aside) {
            Ok(()) => Some(aside),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io_error(&path)(error)),
        };
        Ok((Self::load_or_create(state, comment)?, old))
    }

    /// The public key as one OpenSSH line with the node's name behind it.
    #[must_use]
    pub fn public_line(&self, name: &str) -> String {
        let mut public = self.key.public_key().clone();
        public.set_comment(name);
        public.to_openssh().unwrap_or_default()
    }

    /// The private key, for the transport's handshakes.
    pub(crate) fn private(&self) -> &PrivateKey {
        &self.key
    }

    /// The node whose key this is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        node_of(self.key.public_key()).unwrap_or(NodeId([0; 32]))
    }

    /// `SHA256:…`, the node's id for people.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.key.public_key().fingerprint(HashAlg::Sha256).to_string()
    }
}

/// The node whose key this is; none for keys of other kinds.
#[must_use]
pub fn node_of(key: &ssh_key::PublicKey) -> Option<NodeId> {
    key.key_data().ed25519().map(|key| NodeId(key.0))
}

/// The node of a public key's line, as the config has it.
#[must_use]
pub fn public_node(line: &str) -> Option<NodeId> {
    ssh_key::PublicKey::from_openssh(line).ok().as_ref().and_then(node_of)
}

/// Whether a text is an ed25519 public key as `pleach key` prints it.
///
/// # Errors
/// What is wrong with it.
pub fn check_public(line: &str) -> Result<(), String> {
    let key =
        ssh_key::PublicKey::from_openssh(line).map_err(|error| format!("it is no OpenSSH public key: {error}"))?;
    match key.algorithm() {
        Algorithm::Ed25519 => Ok(()),
        other => Err(format!("it is an {other} key; a node's key is ed25519")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let first = HostKey::load_or_create(&state, "web1").unwrap();
        let again = HostKey::load_or_create(&state, "web1").unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        assert!(first.fingerprint().starts_with("SHA256:"));
        assert!(first.public_line("web1").starts_with("ssh-ed25519 AAAA"));
        assert!(check_public(&first.public_line("web1")).is_ok());
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path_in(&state)), mode(&state)), (0o600, 0o700));
        let left: Vec<_> = fs::read_dir(&state).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["host_key"]);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        HostKey::load_or_create(dir.path(), "x").unwrap();
        fs::set_permissions(path_in(dir.path()), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(HostKey::load(dir.path()), Err(KeyError::Exposed { mode: 0o644, .. })));
    }

    #[test]
    fn garbage_is_no_key_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_in(dir.path());
        fs::write(&path, "garbage").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(HostKey::load_or_create(dir.path(), "x"), Err(KeyError::Format { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"garbage");
    }

    #[test]
    fn replacing_keeps_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let first = HostKey::load_or_create(dir.path(), "x").unwrap();
        let (second, old) = HostKey::replace(dir.path(), "x", 7).unwrap();
        assert_ne!(first.fingerprint(), second.fingerprint());
        assert!(old.unwrap().exists());
    }
}
