//! Debian's rsync daemon on a free port, with modules, users and secrets files as operators write them.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub, reason = "a test that cannot go on fails")]

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::cluster::{Node, free_port, until};

/// One daemon; its directory holds config, log and the modules.
pub struct Daemon {
    pub dir: PathBuf,
    pub port: u16,
    head: String,
    modules: String,
    running: Option<Child>,
}

impl Daemon {
    /// A daemon without modules, not running.
    pub fn new(base: &Path, name: &str) -> Self {
        let dir = base.join(name);
        fs::create_dir_all(&dir).unwrap();
        let shown = dir.display();
        let head = format!(
            "use chroot = no\nmunge symlinks = no\nstrict modes = yes\naddress = 127.0.0.1\nlock file = {shown}/lock\nlog file = {shown}/log\n\
             transfer logging = yes\nlog format = %o %f %l\n"
        );
        Self { dir, port: free_port(), head, modules: String::new(), running: None }
    }

    /// Adds a module `NAME` with the user `NAMEuser` and the password `NAMEpw`.
    pub fn module(&mut self, name: &str, more: &str) -> &mut Self {
        let path = self.at(name);
        fs::create_dir_all(&path).unwrap();
        self.module_at(name, &path, more)
    }

    /// The same over a directory that is there.
    pub fn module_at(&mut self, name: &str, path: &Path, more: &str) -> &mut Self {
        let secrets = self.dir.join(format!("{name}.secrets"));
        secret(&secrets, &format!("{name}user:{name}pw\n"));
        // Another user's name in a module's path is not meant here: the files are the tests' own.
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        self.modules += &format!(
            "[{name}]\npath = {}\nread only = no\nlist = false\nuid = {uid}\ngid = {gid}\nauth users = {name}user\n\
             secrets file = {}\n{more}\n",
            path.display(),
            secrets.display(),
        );
        self
    }

    /// Where a module's files are.
    pub fn at(&self, module: &str) -> PathBuf {
        self.dir.join(module)
    }

    pub fn start(&mut self) -> &mut Self {
        let config = self.dir.join("rsyncd.conf");
        fs::write(&config, format!("{}{}", self.head, self.modules)).unwrap();
        let mut command = Command::new("rsync");
        command.args(["--daemon", "--no-detach", &format!("--port={}", self.port)]);
        command.arg(format!("--config={}", config.display())).stdin(Stdio::null());
        let out = fs::File::create(self.dir.join("out")).unwrap();
        command.stdout(out.try_clone().unwrap()).stderr(out);
        #[allow(unsafe_code, reason = "prctl is safe to call between fork and exec")]
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                Ok(())
            });
        }
        self.running = Some(command.spawn().unwrap());
        until("the daemon listens", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
        self
    }

    pub fn stop(&mut self) {
        let mut running = self.running.take().unwrap();
        running.kill().unwrap();
        running.wait().unwrap();
    }

    pub fn reword(&mut self, old: &str, new: &str) {
        assert!(self.modules.contains(old), "{old}");
        self.modules = self.modules.replace(old, new);
    }

    /// What the daemon logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("log")).unwrap_or_default()).into_owned()
    }

    /// Makes a module a peer of a node, through a port.
    pub fn peer_through(&self, node: &mut Node, module: &str, port: u16, more: &str) {
        let pass = node.dir.join(format!("{module}.pass"));
        secret(&pass, &format!("{module}pw\n"));
        node.say(&format!(
            "[[peer]]\nname = \"{module}\"\naddress = \"rsync://{module}user@127.0.0.1:{port}/{module}\"\n\
             password_file = {pass:?}\ntimeout = \"20s\"\n{more}\n"
        ));
    }

    /// Makes a module a peer of a node.
    pub fn peer(&self, node: &mut Node, module: &str, more: &str) {
        self.peer_through(node, module, self.port, more);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill().ok();
            running.wait().ok();
        }
    }
}

/// Writes a file that nobody else may read.
pub fn secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
