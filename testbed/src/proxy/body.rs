//! Bodies that are counted, slowed, damaged or cut while they go through.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;

/// How often a second a slow body goes on, if its pace allows.
const STEPS_PER_SECOND: u64 = 20;
/// Time for what was sent to reach the client, which a reset on its heels could take back.
const SETTLE: Duration = Duration::from_millis(30);

/// A body on its way.
pub(super) struct Relay {
    inner: Incoming,
    /// Of what came in and has not gone on yet.
    rest: Bytes,
    passed: u64,
    count: Option<Arc<AtomicU64>>,
    flip: Option<u64>,
    pace: Option<u64>,
    cut: Option<Cut>,
    wait: Option<Pin<Box<Sleep>>>,
}

struct Cut {
    after_bytes: u64,
    reset: CancellationToken,
}

impl Relay {
    pub(super) fn new(inner: Incoming) -> Self {
        Self { inner, rest: Bytes::new(), passed: 0, count: None, flip: None, pace: None, cut: None, wait: None }
    }

    /// Adds to `count` what comes in.
    pub(super) fn counted(mut self, count: Arc<AtomicU64>) -> Self {
        self.count = Some(count);
        self
    }

    /// Turns a bit of the byte at `offset`.
    pub(super) fn flipped(mut self, offset: u64) -> Self {
        self.flip = Some(offset);
        self
    }

    /// Lets so many bytes through each second.
    pub(super) fn paced(mut self, bytes_per_second: u64) -> Self {
        self.pace = Some(bytes_per_second.max(1));
        self
    }

    /// Cancels `reset` after so many bytes, and never ends.
    pub(super) fn cut(mut self, after_bytes: u64, reset: CancellationToken) -> Self {
        self.cut = Some(Cut { after_bytes, reset });
        self
    }

    /// How much may go on at once now.
    fn step(&self) -> u64 {
        let by_pace = self.pace.map_or(u64::MAX, |pace| (pace / STEPS_PER_SECOND).max(1));
        let by_cut = self.cut.as_ref().map_or(u64::MAX, |cut| cut.after_bytes.saturating_sub(self.passed));
        by_pace.min(by_cut)
    }

    fn damaged(&self, piece: Bytes) -> Bytes {
        let at = self.flip.and_then(|offset| offset.checked_sub(self.passed)).and_then(|at| usize::try_from(at).ok());
        let Some(at) = at.filter(|at| *at < piece.len()) else { return piece };
        let mut bytes = Vec::from(piece);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1;
        }
        bytes.into()
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(wait) = &mut self.wait {
            ready!(wait.as_mut().poll(context));
            self.wait = None;
            if let Some(cut) = self.cut.as_ref().filter(|cut| self.passed >= cut.after_bytes) {
                cut.reset.cancel();
                return Poll::Pending;
            }
        }
        if self.cut.as_ref().is_some_and(|cut| self.passed >= cut.after_bytes) {
            self.wait = Some(Box::pin(sleep(SETTLE)));
            return self.poll_frame(context);
        }
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        if let Some(count) = &self.count {
                            count.fetch_add(data.len() as u64, Ordering::SeqCst);
                        }
                        self.rest = data;
                    }
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
        let step = usize::try_from(self.step()).unwrap_or(usize::MAX).min(self.rest.len());
        let piece = self.rest.split_to(step);
        let piece = self.damaged(piece);
        self.passed += piece.len() as u64;
        if let Some(pace) = self.pace {
            self.wait = Some(Box::pin(sleep(Duration::from_secs_f64(piece.len() as f64 / pace as f64))));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.cut.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.inner.size_hint();
        let rest = self.rest.len() as u64;
        match inner.exact() {
            Some(exact) => SizeHint::with_exact(exact + rest),
            None => SizeHint::default(),
        }
    }
}
