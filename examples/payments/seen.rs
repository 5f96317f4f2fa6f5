//! What the fault injector has seen: where the server is, its deaths, its answers, and what became of them.

use std::{collections::BTreeMap, net::SocketAddr};

use buttress::clock::{self, Instant};

use crate::message::Message;

/// What an answer has that was given before.
const REPLAYED: &str = "idempotency-replayed";

#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Where the server is, unless it is gone.
    pub(crate) server: Option<SocketAddr>,
    pub(crate) kills: Vec<Kill>,
    /// How often each fault was met.
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// What the server answered, whether or not it got to the client.
    pub(crate) answers: BTreeMap<&'static str, u64>,
}

/// A death of the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kill {
    pub(crate) at: Instant,
    /// When its successor took requests.
    pub(crate) back: Option<Instant>,
    /// When the first payment after that got its answer.
    pub(crate) next: Option<Instant>,
}

impl Seen {
    pub(crate) fn new(server: SocketAddr) -> Self {
        Self {
            server: Some(server),
            kills: Vec::new(),
            faults: BTreeMap::new(),
            answers: BTreeMap::new(),
        }
    }

    /// From now on nothing gets to the server.
    pub(crate) fn server_is_gone(&mut self) {
        self.server = None;
        self.kills.push(Kill {
            at: clock::now(),
            back: None,
            next: None,
        });
    }

    /// The server listens here now.
    pub(crate) fn server_is_back(&mut self, at: SocketAddr) {
        self.server = Some(at);
        if let Some(kill) = self.kills.last_mut() {
            kill.back = Some(clock::now());
        }
    }

    pub(crate) fn is_down(&self) -> bool {
        self.server.is_none()
    }

    pub(crate) fn fault(&mut self, what: &'static str) {
        *self.faults.entry(what).or_default() += 1;
    }

    pub(crate) fn answer(&mut self, answer: &Message) {
        let what = match answer.status() {
            Some(200) if answer.header(REPLAYED).is_some() => "paid before: replayed",
            Some(200) => "paid",
            Some(409) if answer.says("idempotency-in-flight") => "409, in flight",
            Some(409) => "409, outcome unknown",
            Some(429) => "429, too fast",
            Some(503) => "503, nothing was written",
            _ => "something else",
        };
        *self.answers.entry(what).or_default() += 1;
    }

    /// The client has an answer.
    pub(crate) fn acknowledged(&mut self) {
        if let Some(kill) = self.kills.last_mut()
            && kill.back.is_some()
        {
            kill.next.get_or_insert_with(clock::now);
        }
    }
}
