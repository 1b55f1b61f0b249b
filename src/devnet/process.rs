//! One supervised child process of the same binary.
//!
//! A child prints JSON lines on its standard output, one of which says `{"event":"ready",…}`; what it
//! logs goes to a file. A child that ends early is started again, a few times, with a growing pause. No
//! child outlives its parent.

use std::{
    fs::OpenOptions,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// Restarts before a child is given up.
const RESTARTS: u32 = 5;
/// A child that ran this long starts with a clean slate.
const HEALTHY: Duration = Duration::from_secs(60);
/// How long a child may drain after it was asked to stop.
const DRAIN: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("cannot start {name}: {source}")]
    Spawn { name: String, source: io::Error },
    #[error("{name} was not ready within {seconds} s; its log is {log}\n{tail}")]
    NotReady { name: String, seconds: u64, log: String, tail: String },
    #[error("{name} ended before it was ready; its log is {log}\n{tail}")]
    Ended { name: String, log: String, tail: String },
}

/// What to run: a subcommand of this binary.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    /// The `argus` binary: this one, or the one that a test names.
    pub binary: PathBuf,
    pub arguments: Vec<String>,
    pub log: PathBuf,
}

/// A running child under supervision.
pub struct Process {
    spec: Spec,
    ready: watch::Receiver<Option<Value>>,
    stop: CancellationToken,
    supervisor: JoinHandle<()>,
}

impl Process {
    /// Starts the child and its supervisor.
    pub fn start(spec: Spec) -> Result<Self, ProcessError> {
        let (ready_out, ready) = watch::channel(None);
        let stop = CancellationToken::new();
        let child = spawn(&spec)?;
        let supervisor = tokio::spawn(supervise(spec.clone(), child, ready_out, stop.clone()));
        Ok(Self { spec, ready, stop, supervisor })
    }

    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Waits for the child's `ready` line and returns it.
    pub async fn ready(&mut self, within: Duration) -> Result<Value, ProcessError> {
        let waiting = timeout(within, self.ready.wait_for(Option::is_some)).await;
        let (name, log, tail) =
            (self.spec.name.clone(), self.spec.log.display().to_string(), tail(&self.spec.log));
        match waiting {
            Ok(Ok(line)) => Ok(line.clone().expect("waited for a line")),
            Ok(Err(_)) => Err(ProcessError::Ended { name, log, tail }),
            Err(_) => Err(ProcessError::NotReady { name, seconds: within.as_secs(), log, tail }),
        }
    }

    /// Asks the child to stop, lets it drain, and ends it by force when it does not.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.supervisor.await;
    }
}

fn spawn(spec: &Spec) -> Result<Child, ProcessError> {
    let fail = |source| ProcessError::Spawn { name: spec.name.clone(), source };
    let log = OpenOptions::new().create(true).append(true).open(&spec.log).map_err(fail)?;
    let mut command = Command::new(&spec.binary);
    command
        .args(&spec.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true)
        // Its own group: Ctrl-C in the terminal reaches the devnet alone, which stops the children in order.
        .process_group(0);
    #[cfg(target_os = "linux")]
    // SAFETY: prctl is async-signal-safe and touches nothing of the parent.
    unsafe {
        command.pre_exec(|| {
            // `kill -9` of the devnet must not leave a network behind.
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
    command.spawn().map_err(fail)
}

async fn supervise(spec: Spec, first: Child, ready: watch::Sender<Option<Value>>, stop: CancellationToken) {
    let mut child = first;
    let mut restarts = 0;
    loop {
        let started = Instant::now();
        let status = tokio::select! {
            status = run(&mut child, &ready) => status,
            () = stop.cancelled() => {
                drain(child).await;
                return;
            }
        };
        if started.elapsed() > HEALTHY {
            restarts = 0;
        }
        restarts += 1;
        tracing::warn!(child = %spec.name, ?status, restarts, "a child ended early");
        if restarts > RESTARTS {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(250) * 2u32.pow(restarts)) => {}
            () = stop.cancelled() => return,
        }
        match spawn(&spec) {
            Ok(next) => child = next,
            Err(error) => {
                tracing::error!(%error, "a child cannot be restarted");
                return;
            }
        }
    }
}

/// Reads the child's lines until it ends.
async fn run(
    child: &mut Child,
    ready: &watch::Sender<Option<Value>>,
) -> io::Result<std::process::ExitStatus> {
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let Ok(value) = serde_json::from_str::<Value>(&line) else {
                continue;
            };
            if value["event"] == "ready" {
                ready.send_replace(Some(value));
            }
        }
    }
    child.wait().await
}

async fn drain(mut child: Child) {
    if let Some(pid) = child.id() {
        // SAFETY: the child is ours and has not been waited for, so the pid is still its own.
        unsafe { libc::kill(pid as libc::pid_t, libc::SIGTERM) };
    }
    if timeout(DRAIN, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// The last lines of a log, for an error message.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
