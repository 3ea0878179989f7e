//! A running program of PostgreSQL's, here or in a container.

use super::connection::Password;
use super::container::Exec;
use super::error::DatabaseError;
use crate::budget::{ANSWER_BYTES_MAX, STDERR_TAIL_BYTES};
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::process::{Child, Command};

/// What is read from a pipe at a time.
const PIPE_BYTES: usize = 256 << 10;

/// How long a program may take to end by itself once it was asked to: `pg_dump` tells the server meanwhile.
const END_WAIT: Duration = Duration::from_secs(5);

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exited {
    /// Its exit status, 0 where all went well; 128 and the signal's number where one ended it.
    pub code: i64,
    /// The end of what it said on stderr, at most [`STDERR_TAIL_BYTES`]. The password is not in it.
    pub stderr: String,
}

/// The end of what was said on stderr.
#[derive(Clone, Default)]
pub(super) struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    pub(super) fn push(&self, said: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(said);
        let excess = tail.len().saturating_sub(STDERR_TAIL_BYTES);
        tail.drain(..excess);
    }

    fn text(&self) -> String {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (front, back) = tail.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).trim_end().to_owned()
    }
}

/// Where it runs.
enum Running {
    /// The child, and the task that reads its stderr.
    Local(Child, tokio::task::JoinHandle<()>),
    Exec(Exec),
}

/// A running program. Dropped, it is killed.
pub struct Process {
    pub(super) program: &'static str,
    output: BoxStream<'static, Result<Bytes, DatabaseError>>,
    /// What it said while it was being written to.
    unread: VecDeque<Bytes>,
    unread_bytes: usize,
    target: String,
    input: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    tail: Tail,
    secret: Option<Password>,
    running: Running,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process").field("program", &self.program).field("target", &self.target).finish_non_exhaustive()
    }
}

/// What a pipe gives, piece by piece.
fn pieces(pipe: impl AsyncRead + Send + Unpin + 'static) -> BoxStream<'static, io::Result<Bytes>> {
    futures_util::stream::unfold(Some((pipe, BytesMut::new())), |state| async move {
        let (mut pipe, mut buffer) = state?;
        buffer.reserve(PIPE_BYTES);
        match pipe.read_buf(&mut buffer).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(buffer.split().freeze()), Some((pipe, buffer)))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

fn status_code(status: ExitStatus) -> i64 {
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    status.code().or_else(|| signal.map(|signal| 128 + signal)).map_or(-1, i64::from)
}

/// What a program is started for.
pub(super) struct Purpose {
    pub(super) program: &'static str,
    pub(super) target: String,
    pub(super) secret: Option<Password>,
    pub(super) has_input: bool,
}

impl Process {
    /// Starts a local program. Its environment is that of `command`.
    pub(super) fn local(mut command: Command, purpose: Purpose) -> Result<Self, DatabaseError> {
        let Purpose { program, target, secret, has_input } = purpose;
        command.stdin(if has_input { Stdio::piped() } else { Stdio::null() }).stdout(Stdio::piped()).stderr(Stdio::piped());
        // In a group of its own, a Ctrl-C at the terminal reaches us alone, and we end it in our own way.
        command.kill_on_drop(true).process_group(0);
        let mut child =
            command.spawn().map_err(|source| DatabaseError::Start { program: command.as_std().get_program().to_string_lossy().into_owned(), source })?;
        let tail = Tail::default();
        let said = child.stderr.take().map(pieces);
        let kept = tail.clone();
        let stderr = tokio::spawn(async move {
            if let Some(mut said) = said {
                while let Some(Ok(piece)) = said.next().await {
                    kept.push(&piece);
                }
            }
        });
        let failed = move |source| DatabaseError::Read { program, source };
        let output =
            child.stdout.take().map_or_else(|| futures_util::stream::empty().boxed(), |stdout| pieces(stdout).map(move |piece| piece.map_err(failed)).boxed());
        let input = child.stdin.take().map(|stdin| Box::pin(stdin) as Pin<Box<dyn AsyncWrite + Send>>);
        let running = Running::Local(child, stderr);
        Ok(Self { program, output: output.fuse().boxed(), unread: VecDeque::new(), unread_bytes: 0, target, input, tail, secret, running })
    }

    /// One that runs in a container.
    pub(super) fn exec(
        exec: Exec,
        output: BoxStream<'static, Result<Bytes, DatabaseError>>,
        input: Option<Pin<Box<dyn AsyncWrite + Send>>>,
        tail: Tail,
        purpose: Purpose,
    ) -> Self {
        let Purpose { program, target, secret, .. } = purpose;
        let output = output.fuse().boxed();
        Self { program, output, unread: VecDeque::new(), unread_bytes: 0, target, input, tail, secret, running: Running::Exec(exec) }
    }

    /// The next piece of what it writes to stdout; `None` at its end. That it ended well is for [`Self::finish`] to say.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn read(&mut self) -> Result<Option<Bytes>, DatabaseError> {
        if let Some(piece) = self.unread.pop_front() {
            self.unread_bytes -= piece.len();
            return Ok(Some(piece));
        }
        self.output.next().await.transpose()
    }

    /// Writes to its stdin. What it says meanwhile is kept for [`Self::read`], so that neither waits for the other.
    ///
    /// # Errors
    /// [`DatabaseError::InputClosed`] where it has ended: [`Self::finish`] tells why. [`DatabaseError::TooMuch`] where it says more meanwhile than
    /// [`ANSWER_BYTES_MAX`].
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), DatabaseError> {
        let program = self.program;
        let closed = |source| DatabaseError::InputClosed { program, source };
        let mut has_output = true;
        while !bytes.is_empty() {
            let Some(input) = &mut self.input else { return Err(closed(io::ErrorKind::BrokenPipe.into())) };
            tokio::select! {
                written = input.write(&bytes) => match written.map_err(closed)? {
                    0 => return Err(closed(io::ErrorKind::WriteZero.into())),
                    count => bytes.advance(count),
                },
                said = self.output.next(), if has_output => match said.transpose()? {
                    Some(piece) => {
                        self.unread_bytes += piece.len();
                        self.unread.push_back(piece);
                        if self.unread_bytes > ANSWER_BYTES_MAX {
                            return Err(self.too_much());
                        }
                    }
                    None => has_output = false,
                },
            }
        }
        Ok(())
    }

    /// Ends its stdin.
    ///
    /// # Errors
    /// It has ended before.
    pub async fn close_input(&mut self) -> Result<(), DatabaseError> {
        match self.input.take() {
            Some(mut input) => {
                let program = self.program;
                input.shutdown().await.map_err(|source| DatabaseError::InputClosed { program, source })
            }
            None => Ok(()),
        }
    }

    /// Waits for its end; what it still writes to stdout is thrown away.
    ///
    /// # Errors
    /// How it ended cannot be told.
    pub async fn finish(mut self) -> Result<Exited, DatabaseError> {
        // One that has ended already needs no end of its input.
        self.close_input().await.ok();
        while self.read().await?.is_some() {}
        let code = match &mut self.running {
            Running::Local(child, stderr) => {
                let status = child.wait().await.map_err(|source| DatabaseError::Read { program: self.program, source })?;
                // A grandchild could hold it open for ever.
                tokio::time::timeout(END_WAIT, stderr).await.ok();
                status_code(status)
            }
            Running::Exec(exec) => exec.wait(self.program).await?,
        };
        Ok(Exited { code, stderr: self.said() })
    }

    /// Ends it before its time: it is asked to, so that `pg_dump` has the server stop too, and killed where it does not.
    pub async fn end(mut self) {
        match &mut self.running {
            Running::Local(child, _) => {
                // While it has not been waited for, the number is its own.
                let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
                let asked = pid.is_some_and(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_ok());
                if !asked || tokio::time::timeout(END_WAIT, child.wait()).await.is_err() {
                    child.kill().await.ok();
                }
            }
            Running::Exec(exec) => {
                if exec.ask_to_end().await {
                    // Docker calls it ended only when all that it said was taken, or nobody is there to take it.
                    self.output = futures_util::stream::empty().boxed();
                    self.input = None;
                    exec.wait_for_end(END_WAIT).await;
                }
            }
        }
    }

    /// The end of what it said on stderr until now, without the password.
    fn said(&self) -> String {
        let said = self.tail.text();
        match &self.secret {
            Some(secret) => said.replace(secret.reveal(), &secret.to_string()),
            None => said,
        }
    }

    /// What it has to say, whole, and how it ended.
    pub(super) async fn answer(mut self) -> Result<(Vec<u8>, Exited), DatabaseError> {
        let mut answer = Vec::new();
        while let Some(piece) = self.read().await? {
            answer.extend_from_slice(&piece);
            if answer.len() > ANSWER_BYTES_MAX {
                return Err(self.too_much());
            }
        }
        Ok((answer, self.finish().await?))
    }

    fn too_much(&self) -> DatabaseError {
        DatabaseError::TooMuch { program: self.program, target: self.target.clone(), limit_bytes: ANSWER_BYTES_MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, has_input: bool) -> Process {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script);
        let secret = Some(Password::new("hunter2"));
        Process::local(command, Purpose { program: "sh", target: "nowhere".to_owned(), secret, has_input }).unwrap()
    }

    #[tokio::test]
    async fn what_is_written_and_said_at_the_same_time_does_not_wait_for_each_other() {
        let mut process = run("cat", true);
        let text = Bytes::from(vec![b'x'; 5 << 20]);
        process.write(text.clone()).await.unwrap();
        process.close_input().await.unwrap();
        assert_eq!(process.answer().await.unwrap(), (text.to_vec(), Exited { code: 0, stderr: String::new() }));
    }

    #[tokio::test]
    async fn the_end_of_stderr_is_kept_however_much_it_is_and_without_the_password() {
        let process = run("i=0; while [ $i -lt 20000 ]; do echo line $i >&2; i=$((i+1)); done; echo wrong password hunter2 >&2; exit 3", false);
        let exited = process.finish().await.unwrap();
        assert_eq!(exited.code, 3);
        assert!(exited.stderr.len() <= STDERR_TAIL_BYTES && exited.stderr.contains("line 19999"), "{}", exited.stderr.len());
        assert!(exited.stderr.ends_with("wrong password ***"));
    }

    #[tokio::test]
    async fn one_that_a_signal_ended_did_not_end_well() {
        assert_eq!(run("kill -9 $$", false).finish().await.unwrap().code, 137);
    }

    #[tokio::test]
    async fn writing_to_one_that_ended_is_an_error_and_its_end_can_still_be_told() {
        let mut process = run("echo no >&2; exit 2", true);
        let mut last = Ok(());
        for _ in 0..100 {
            last = process.write(Bytes::from(vec![b'x'; 1 << 20])).await;
            if last.is_err() {
                break;
            }
        }
        assert!(matches!(last, Err(DatabaseError::InputClosed { .. })), "{last:?}");
        assert_eq!(process.finish().await.unwrap(), Exited { code: 2, stderr: "no".to_owned() });
    }

    #[tokio::test]
    async fn one_that_says_too_much_is_left_off() {
        let answer = run("yes", false).answer().await;
        assert!(matches!(answer, Err(DatabaseError::TooMuch { .. })));
        let mut process = run("yes & cat >/dev/null", true);
        let written = process.write(Bytes::from(vec![b'x'; 1 << 20])).await;
        // It may well take all before it has said so much.
        assert!(matches!(written, Ok(()) | Err(DatabaseError::TooMuch { .. })));
    }

    #[tokio::test]
    async fn ending_asks_first_and_dropping_kills() {
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join("asked");
        let mut process = run(&format!("trap 'echo > {}; exit 1' TERM; echo ready; while :; do sleep 0.1; done", note.display()), false);
        process.read().await.unwrap();
        process.end().await;
        assert!(note.exists());
        let mut process = run("echo $$; exec sleep 1000", false);
        let pid = String::from_utf8(process.read().await.unwrap().unwrap().to_vec()).unwrap();
        let stat = std::path::PathBuf::from(format!("/proc/{}/stat", pid.trim()));
        assert!(stat.exists());
        drop(process);
        for _ in 0..100 {
            match std::fs::read_to_string(&stat) {
                Ok(stat) if !stat.contains(") Z ") => tokio::time::sleep(Duration::from_millis(50)).await,
                _ => return,
            }
        }
        panic!("it lives");
    }
}
