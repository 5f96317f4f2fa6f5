//! The fault injector: a TCP proxy between client and server that does what networks do.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
};
use uuid::Uuid;

use crate::{message::Message, outbox::IDEMPOTENCY_KEY, seen::Seen};

/// What goes wrong with an answer.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The connection is reset: a RST instead of an answer.
    Reset,
    /// The answer never comes.
    Hang,
    /// A gateway answers instead of the server.
    Answer(u16),
    /// The answer stops in the middle of its body.
    Cut,
}

/// Whether the server has run the payment by then. The client cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Before,
    After,
}

/// What a send can meet, each as often as the others.
const FAULTS: [(&str, Fault, Effect); 10] = [
    ("429", Fault::Answer(429), Effect::Before),
    ("500", Fault::Answer(500), Effect::Before),
    ("500, payment ran", Fault::Answer(500), Effect::After),
    ("503", Fault::Answer(503), Effect::Before),
    ("503, payment ran", Fault::Answer(503), Effect::After),
    ("answer cut", Fault::Cut, Effect::After),
    ("hung", Fault::Hang, Effect::Before),
    ("hung, payment ran", Fault::Hang, Effect::After),
    ("reset", Fault::Reset, Effect::Before),
    ("reset, payment ran", Fault::Reset, Effect::After),
];

/// What everything meets while the server is gone: a refused connect, or a RST on an old connection.
pub(crate) const DOWN: &str = "server down";

/// What a request meets that was in the server when it was killed: the end of its connection.
const KILLED: &str = "killed in the middle of it";

/// What a 429 says besides. It is whole seconds, and one of them is long for this program.
const RETRY_AFTER: &str = "retry-after: 1\r\n";

/// The proxy. Its faults depend on the seed, the key of a payment and how often it was sent: not on
/// which send came first, so a run with the same seed meets the same faults.
#[derive(Debug)]
pub(crate) struct Injector {
    share: f64,
    seed: u64,
    /// Bound but never listening, so that a connect to it is refused by the operating system.
    closed: TcpSocket,
    sends: Mutex<HashMap<Uuid, u64>>,
    seen: Mutex<Seen>,
}

impl Injector {
    pub(crate) fn new(server: SocketAddr, share: f64, seed: u64) -> io::Result<Self> {
        let closed = TcpSocket::new_v4()?;
        closed.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        Ok(Self {
            share,
            seed,
            closed,
            sends: Mutex::default(),
            seen: Mutex::new(Seen::new(server)),
        })
    }

    /// Starts the proxy on a free port of the loopback interface.
    pub(crate) async fn start(self: Arc<Self>) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            loop {
                // Neither a failed accept nor a broken connection is of interest to anybody here.
                if let Ok((client, _)) = listener.accept().await {
                    let injector = self.clone();
                    tokio::spawn(async move { injector.relay(client).await });
                }
            }
        });
        Ok(address)
    }

    /// Connects to the proxy, or to a port where nobody listens.
    pub(crate) async fn connect(&self, proxy: SocketAddr) -> io::Result<TcpStream> {
        // A connection belongs to no payment: the nil key stands for all of them.
        let refused = if self.seen().is_down() {
            Some(DOWN)
        } else {
            let refused = self.dice(Uuid::nil()).random_bool(self.share / 2.0);
            refused.then_some("connect refused")
        };
        let address = if let Some(fault) = refused {
            self.seen().fault(fault);
            self.closed.local_addr()?
        } else {
            proxy
        };
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// How many payments were sent, as far as is known here.
    pub(crate) fn payments(&self) -> u64 {
        let sends = self.sends.lock().unwrap();
        sends.keys().filter(|key| !key.is_nil()).count() as u64
    }

    /// What it has seen. Do not wait while this is held.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// The dice for the next send with this key.
    fn dice(&self, key: Uuid) -> StdRng {
        let mut sends = self.sends.lock().unwrap();
        let nth = sends.entry(key).or_default();
        *nth += 1;
        let mut seed = [0; 32];
        seed[..16].copy_from_slice(key.as_bytes());
        seed[16..24].copy_from_slice(&self.seed.to_le_bytes());
        seed[24..].copy_from_slice(&nth.to_le_bytes());
        StdRng::from_seed(seed)
    }

    /// The fault that this request meets, if it meets one.
    fn draw(&self, request: &Message) -> Option<(Fault, Effect)> {
        if self.seen().is_down() {
            self.seen().fault(DOWN);
            return Some((Fault::Reset, Effect::Before));
        }
        let key = request.header(IDEMPOTENCY_KEY)?.parse().ok()?;
        let mut dice = self.dice(key);
        if !dice.random_bool(self.share) {
            return None;
        }
        let (name, fault, effect) = *FAULTS.choose(&mut dice)?;
        self.seen().fault(name);
        Some((fault, effect))
    }

    /// Passes requests on and answers back, until a fault or the client ends the connection.
    async fn relay(&self, client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut client = BufReader::new(client);
        let Some(address) = self.seen().server else {
            return client.get_ref().set_zero_linger();
        };
        let mut server = BufReader::new(TcpStream::connect(address).await?);
        server.get_ref().set_nodelay(true)?;
        loop {
            let request = tokio::select! {
                request = Message::read(&mut client) => request?,
                // It has not been asked anything: this is its end.
                _ = server.fill_buf() => return Ok(()),
            };
            let fault = self.draw(&request);
            let mut answer = Message::default();
            if !matches!(fault, Some((_, Effect::Before))) {
                let sent = server.write_all(&request.bytes).await;
                let read = sent.and(Message::read(&mut server).await);
                answer = read.inspect_err(|_| self.seen().fault(KILLED))?;
                self.seen().answer(&answer);
            }
            match fault.map(|(fault, _)| fault) {
                None => {
                    client.write_all(&answer.bytes).await?;
                    self.seen().acknowledged();
                }
                Some(Fault::Answer(status)) => {
                    let more = if status == 429 { RETRY_AFTER } else { "" };
                    let head =
                        format!("HTTP/1.1 {status} Fault\r\n{more}content-length: 0\r\n\r\n");
                    client.write_all(head.as_bytes()).await?;
                }
                // With no time to linger, closing the socket sends a RST.
                Some(Fault::Reset) => return client.get_ref().set_zero_linger(),
                // Until the client gives up and closes the connection.
                Some(Fault::Hang) => return client.read_u8().await.map(drop),
                Some(Fault::Cut) => {
                    let middle = usize::midpoint(answer.head, answer.bytes.len());
                    return client.write_all(&answer.bytes[..middle]).await;
                }
            }
        }
    }
}
