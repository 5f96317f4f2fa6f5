//! A thread, and what waits for it.

use std::{
    io,
    thread::{self, JoinHandle},
};

use buttress_idempotency::{StoreError, StoreErrorKind};
use tokio::sync::{mpsc, oneshot};

pub(crate) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

const WAITING: usize = 4_096;

/// Jobs for a thread. When it is dropped, what waits is done first.
#[derive(Debug)]
pub(crate) struct Queue<J> {
    jobs: Option<mpsc::Sender<J>>,
    thread: Option<JoinHandle<()>>,
}

impl<J: Send + 'static> Queue<J> {
    pub(crate) fn new(
        name: &str,
        work: impl FnOnce(mpsc::Receiver<J>) + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, waiting) = mpsc::channel(WAITING);
        let thread = thread::Builder::new().name(name.into());
        let thread = thread.spawn(move || work(waiting))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// Waits for a place in the queue, and for the answer to this job.
    pub(crate) async fn ask<T>(&self, job: impl FnOnce(Reply<T>) -> J) -> Result<T, StoreError> {
        let gone = || StoreError::new(StoreErrorKind::Unavailable).because("its thread has ended");
        let (reply, answer) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl<J> Drop for Queue<J> {
    fn drop(&mut self) {
        self.jobs = None;
        // A thread that has panicked has said so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
