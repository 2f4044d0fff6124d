//! A bounded queue of frames between a link's task and its user.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pleach_protocol::wire::FrameError;
use tokio::sync::Notify;

/// What a frame costs beyond its bytes, so that empty ones are bounded too.
const FRAME_OVERHEAD: usize = size_of::<Vec<u8>>();

/// How a stream of frames ended.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// In good order, between two frames.
    Clean,
    Frame(FrameError),
    Lost(String),
}

#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// For whoever takes frames out: one task.
    filled: Notify,
}

#[derive(Default)]
struct State {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    end: Option<End>,
    discards: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits.
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Puts a frame in at once, or says how full the queue is; none once it has ended.
    pub(super) fn push(&self, frame: Vec<u8>, bytes_max: usize) -> Result<(), Option<usize>> {
        let mut state = self.lock();
        if state.end.is_some() {
            return Err(None);
        }
        if state.bytes >= bytes_max {
            return Err(Some(state.bytes));
        }
        state.put(frame);
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Puts a frame in even where there is no room, unless it is not wanted any more. Says whether
    /// the queue is full now.
    pub(super) fn push_beyond(&self, frame: Vec<u8>, bytes_max: usize) -> bool {
        let mut state = self.lock();
        if state.discards || state.end.is_some() {
            return false;
        }
        state.put(frame);
        let full = state.bytes >= bytes_max;
        drop(state);
        self.filled.notify_one();
        full
    }

    /// Takes the next frame out; how it ended behind the last. Nothing is lost when the future is dropped.
    pub(super) async fn pop(&self) -> Result<Vec<u8>, End> {
        loop {
            if let Some(popped) = self.try_pop() {
                return popped;
            }
            self.filled.notified().await;
        }
    }

    /// As [`Self::pop`], without waiting.
    pub(super) fn try_pop(&self) -> Option<Result<Vec<u8>, End>> {
        let mut state = self.lock();
        let Some(frame) = state.frames.pop_front() else { return state.end.clone().map(Err) };
        state.bytes = state.bytes.saturating_sub(frame.len().saturating_add(FRAME_OVERHEAD));
        Some(Ok(frame))
    }

    /// No frame comes behind those that are there. The first end counts.
    pub(super) fn finish(&self, end: End) {
        self.lock().end.get_or_insert(end);
        self.filled.notify_one();
    }

    /// What still comes is thrown away.
    pub(super) fn discard(&self) {
        self.lock().discards = true;
    }

    pub(super) fn discards(&self) -> bool {
        self.lock().discards
    }

    /// What is there is thrown away too.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        state.discards = true;
        state.bytes = 0;
        let frames = std::mem::take(&mut state.frames);
        drop(state);
        drop(frames);
    }
}

impl State {
    fn put(&mut self, frame: Vec<u8>) {
        self.bytes = self.bytes.saturating_add(frame.len()).saturating_add(FRAME_OVERHEAD);
        self.frames.push_back(frame);
    }
}
