//! The socket as the SSH library sees it: writing only queues, so that its loop never waits for the
//! network while the other side's loop does the same (both would then wait for ever).

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

/// More than both windows together, so that it is never reached by a peer that keeps to its window.
const QUEUE_BYTES_MAX: usize = 40 * 1024 * 1024;
/// What may wait here before our own frames wait above: window updates and keepalives stay quick.
const BACKLOG_BYTES: usize = 1024 * 1024;
/// A queue that grew is given back beyond this.
const QUEUE_BYTES_KEPT: usize = 128 * 1024;
/// A socket that takes nothing for so long is dead.
const STALL: Duration = Duration::from_secs(60);
/// How long a closing stream may take to write what is queued, and then for the other side to close.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// The library's end of a socket.
pub(super) struct QueueStream {
    reader: Option<BufReader<OwnedReadHalf>>,
    shared: Arc<Shared>,
}

/// Our grip on the same socket. Dropping it does nothing.
#[derive(Clone)]
pub(super) struct StreamGrip {
    shared: Arc<Shared>,
}

/// Ends its socket when it is dropped: whatever the library's tasks wait for, they then end.
pub(super) struct KillOnDrop(pub(super) StreamGrip);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to do for the writing task.
    work: Notify,
    /// The backlog is small again, or the stream has ended.
    room: Notify,
    /// Nothing is read for the moment; what is to be written goes on.
    paused: AtomicBool,
}

#[derive(Default)]
struct State {
    queue: VecDeque<u8>,
    socket: Option<Arc<OwnedWriteHalf>>,
    phase: Phase,
    failure: Option<String>,
    /// The reading half, once the library has dropped its end.
    leftover: Option<BufReader<OwnedReadHalf>>,
    reading: Option<Waker>,
    writing: Option<Waker>,
}

#[derive(Clone, Copy, Default, Eq, PartialEq)]
enum Phase {
    #[default]
    Open,
    /// What is queued is still written until then, nothing more is taken.
    Closing(Instant),
    /// The socket takes nothing more; what the other side has sent can still be read until then.
    Deaf(Instant),
    Dead,
}

enum Step {
    Blocked(Phase),
    Finished,
    Idle(Phase),
}

/// Splits a socket into the library's end and our grip, and starts the task that writes.
pub(super) fn queued(socket: TcpStream) -> (QueueStream, StreamGrip) {
    let (reader, writer) = socket.into_split();
    let shared = Arc::new(Shared::default());
    let writer = Arc::new(writer);
    shared.lock().socket = Some(Arc::clone(&writer));
    tokio::spawn(write_out(Arc::clone(&shared), writer));
    // The library asks for a few bytes first: without a buffer each packet costs two system calls.
    let reader = Some(BufReader::with_capacity(16 * 1024, reader));
    (QueueStream { reader, shared: Arc::clone(&shared) }, StreamGrip { shared })
}

impl StreamGrip {
    /// Ends the socket at once.
    pub(super) fn kill(&self) {
        self.shared.kill(None);
    }

    /// What waits for the socket.
    pub(super) fn backlog(&self) -> usize {
        self.shared.lock().queue.len()
    }

    /// Reads nothing until [`Self::resume`]: the kernel's buffers fill, and the other side stops.
    pub(super) fn pause(&self) {
        self.shared.paused.store(true, Ordering::SeqCst);
    }

    /// Reads again.
    pub(super) fn resume(&self) {
        if self.shared.paused.load(Ordering::SeqCst) && self.shared.paused.swap(false, Ordering::SeqCst) {
            let waker = self.shared.lock().reading.take();
            waker.into_iter().for_each(Waker::wake);
        }
    }

    /// Waits until all is written and the other side has closed too, or did not in time. Nobody may
    /// wait for room at the same time.
    pub(super) async fn ended(&self) {
        while self.shared.lock().phase != Phase::Dead {
            self.shared.room.notified().await;
        }
    }

    /// What went wrong on the socket.
    pub(super) fn failure(&self) -> Option<String> {
        self.shared.lock().failure.clone()
    }

    /// Waits until little waits for the socket.
    pub(super) async fn room(&self) {
        loop {
            {
                let state = self.shared.lock();
                if state.queue.len() < BACKLOG_BYTES || state.phase == Phase::Dead {
                    return;
                }
            }
            self.shared.room.notified().await;
        }
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.kill();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kill(&self, failure: Option<String>) {
        let mut state = self.lock();
        if state.phase == Phase::Dead {
            return;
        }
        state.phase = Phase::Dead;
        state.failure = state.failure.take().or(failure);
        state.queue = VecDeque::new();
        state.socket = None;
        state.leftover = None;
        let wakers = [state.reading.take(), state.writing.take()];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
        self.work.notify_one();
        self.room.notify_one();
    }

    /// Writes what the socket takes.
    fn step(&self, socket: &OwnedWriteHalf) -> Step {
        let mut state = self.lock();
        let before = state.queue.len();
        let mut blocked = false;
        while !blocked && !state.queue.is_empty() {
            match socket.try_write(state.queue.as_slices().0) {
                Ok(count) => drop(state.queue.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => blocked = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => state.deafen(&error),
            }
        }
        if state.queue.is_empty() && state.queue.capacity() > QUEUE_BYTES_KEPT {
            state.queue = VecDeque::new();
        }
        if before >= BACKLOG_BYTES && state.queue.len() < BACKLOG_BYTES {
            self.room.notify_one();
        }
        let writing = if blocked && state.queue.len() == before { None } else { state.writing.take() };
        let step = match state.phase {
            Phase::Dead => Step::Finished,
            phase if blocked => Step::Blocked(phase),
            Phase::Closing(_) => Step::Finished,
            phase => Step::Idle(phase),
        };
        drop(state);
        writing.into_iter().for_each(Waker::wake);
        step
    }
}

impl State {
    fn deafen(&mut self, error: &io::Error) {
        self.failure.get_or_insert_with(|| error.to_string());
        self.queue = VecDeque::new();
        self.phase = Phase::Deaf(later(LINGER));
    }
}

fn later(wait: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(wait).unwrap_or(now)
}

/// Writes what is queued for as long as the stream lives, then sees it to its end.
async fn write_out(shared: Arc<Shared>, socket: Arc<OwnedWriteHalf>) {
    loop {
        let (limit, blocked) = match shared.step(&socket) {
            Step::Finished => break,
            Step::Blocked(Phase::Closing(until)) => (until, true),
            Step::Blocked(_) => (later(STALL), true),
            Step::Idle(Phase::Deaf(until)) => (until, false),
            Step::Idle(_) => {
                shared.work.notified().await;
                continue;
            }
        };
        let wait = async {
            tokio::select! {
                _ = socket.writable(), if blocked => {}
                () = shared.work.notified() => {}
            }
        };
        if timeout_at(limit, wait).await.is_err() {
            shared.kill(Some("it took no more data".to_owned()));
        }
    }
    // Both handles gone, the kernel tells the other side that no more comes. Its own last bytes are
    // read to the end: closing over unread bytes resets the connection, and what we wrote is lost.
    drop(socket);
    let socket = shared.lock().socket.take();
    drop(socket);
    let waker = shared.lock().writing.take();
    waker.into_iter().for_each(Waker::wake);
    let end = async {
        loop {
            let (leftover, phase) = {
                let mut state = shared.lock();
                (state.leftover.take(), state.phase)
            };
            if phase == Phase::Dead {
                return;
            }
            if let Some(mut reader) = leftover {
                let mut sink = [0; 4096];
                while matches!(reader.read(&mut sink).await, Ok(1..)) {}
                return;
            }
            shared.work.notified().await;
        }
    };
    // Late or not, it is over.
    let _late = timeout(LINGER, end).await.is_err();
    shared.kill(None);
}

impl AsyncRead for QueueStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        {
            let mut state = self.shared.lock();
            if state.phase == Phase::Dead {
                return Poll::Ready(Ok(()));
            }
            if !state.reading.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                state.reading = Some(cx.waker().clone());
            }
        }
        // After the waker is in place: who resumes takes it.
        if self.shared.paused.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        let Some(reader) = self.reader.as_mut() else { return Poll::Ready(Ok(())) };
        let polled = Pin::new(reader).poll_read(cx, buffer);
        if let Poll::Ready(Err(error)) = &polled {
            self.shared.lock().failure.get_or_insert_with(|| error.to_string());
        }
        polled
    }
}

impl AsyncWrite for QueueStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        match state.phase {
            Phase::Open => {}
            // The reading side finds the end, after the other side's last words.
            Phase::Deaf(_) => return Poll::Ready(Ok(bytes.len())),
            Phase::Closing(_) | Phase::Dead => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
        if state.queue.is_empty() {
            // Straight into the socket where it has room: no copy, no other task.
            let tried = state.socket.as_ref().map(|socket| socket.try_write(bytes));
            match tried {
                Some(Ok(count)) if count > 0 => return Poll::Ready(Ok(count)),
                Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                    state.deafen(&error);
                    self.shared.work.notify_one();
                    return Poll::Ready(Ok(bytes.len()));
                }
                _ => {}
            }
        }
        let room = QUEUE_BYTES_MAX.saturating_sub(state.queue.len());
        let Some(taken) = bytes.get(..bytes.len().min(room)).filter(|taken| !taken.is_empty()) else {
            state.writing = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let first = state.queue.is_empty();
        state.queue.extend(taken);
        if first {
            self.shared.work.notify_one();
        }
        Poll::Ready(Ok(taken.len()))
    }

    /// Resolves at once: waiting for the socket here is what this stream is there to avoid.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Closing(later(LINGER));
            self.shared.work.notify_one();
        }
        if matches!(state.phase, Phase::Closing(_)) && state.socket.is_some() {
            state.writing = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for QueueStream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        match state.phase {
            Phase::Dead => return,
            Phase::Open => state.phase = Phase::Closing(later(LINGER)),
            Phase::Closing(_) | Phase::Deaf(_) => {}
        }
        state.leftover = self.reader.take();
        drop(state);
        self.shared.work.notify_one();
    }
}
