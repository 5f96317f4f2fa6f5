//! The fault injector: a TCP proxy between client and server that does what networks do.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
};
use uuid::Uuid;

use crate::{outage::Outage, server::IDEMPOTENCY_KEY};

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

/// What a 429 says besides. It is whole seconds, and one of them is long for this program.
const RETRY_AFTER: &str = "retry-after: 1\r\n";

/// The proxy. Its faults depend on the seed, the key of a payment and how often it was sent: not on
/// which send came first, so a run with the same seed meets the same faults.
#[derive(Debug)]
pub(crate) struct Injector {
    server: SocketAddr,
    share: f64,
    seed: u64,
    outage: Outage,
    /// Bound but never listening, so that a connect to it is refused by the operating system.
    closed: TcpSocket,
    sends: Mutex<HashMap<Uuid, u64>>,
    faults: Mutex<BTreeMap<&'static str, u64>>,
}

impl Injector {
    pub(crate) fn new(
        server: SocketAddr,
        share: f64,
        seed: u64,
        outage: Outage,
    ) -> io::Result<Self> {
        let closed = TcpSocket::new_v4()?;
        closed.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        Ok(Self {
            server,
            share,
            seed,
            outage,
            closed,
            sends: Mutex::default(),
            faults: Mutex::default(),
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
        let refused = if self.is_down() {
            Some(DOWN)
        } else {
            let refused = self.dice(Uuid::nil()).random_bool(self.share / 2.0);
            refused.then_some("connect refused")
        };
        let address = if let Some(fault) = refused {
            self.count(fault);
            self.closed.local_addr()?
        } else {
            proxy
        };
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// How often each fault was met.
    pub(crate) fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.faults.lock().unwrap().clone()
    }

    pub(crate) fn outage(&self) -> &Outage {
        &self.outage
    }

    /// Is the server gone? All that is known here of the payments is how many keys were sent.
    fn is_down(&self) -> bool {
        let payments = self.sends.lock().unwrap().len();
        self.outage.is_on(payments)
    }

    fn count(&self, fault: &'static str) {
        *self.faults.lock().unwrap().entry(fault).or_default() += 1;
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
        if self.is_down() {
            self.count(DOWN);
            return Some((Fault::Reset, Effect::Before));
        }
        let key = request.header(IDEMPOTENCY_KEY)?.parse().ok()?;
        let mut dice = self.dice(key);
        if !dice.random_bool(self.share) {
            return None;
        }
        let (name, fault, effect) = *FAULTS.choose(&mut dice)?;
        self.count(name);
        Some((fault, effect))
    }

    /// Passes requests on and answers back, until a fault or the client ends the connection.
    async fn relay(&self, client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut client = BufReader::new(client);
        let mut server = BufReader::new(TcpStream::connect(self.server).await?);
        server.get_ref().set_nodelay(true)?;
        loop {
            let request = Message::read(&mut client).await?;
            let fault = self.draw(&request);
            let mut answer = Message::default();
            if !matches!(fault, Some((_, Effect::Before))) {
                server.write_all(&request.bytes).await?;
                answer = Message::read(&mut server).await?;
            }
            match fault.map(|(fault, _)| fault) {
                None => {
                    client.write_all(&answer.bytes).await?;
                    self.outage.answered();
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

/// An HTTP/1.1 request or answer with a `Content-Length`, byte for byte. No more is needed here.
#[derive(Debug, Default)]
struct Message {
    bytes: Vec<u8>,
    /// Where the head ends and the body begins.
    head: usize,
}

impl Message {
    async fn read(from: &mut BufReader<TcpStream>) -> io::Result<Self> {
        let mut message = Self::default();
        while !message.bytes.ends_with(b"\r\n\r\n") {
            if from.read_until(b'\n', &mut message.bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        message.head = message.bytes.len();
        let length = message
            .header("content-length")
            .and_then(|it| it.parse().ok());
        let mut body = from.take(length.unwrap_or(0));
        body.read_to_end(&mut message.bytes).await?;
        Ok(message)
    }

    fn header(&self, name: &str) -> Option<&str> {
        let head = str::from_utf8(&self.bytes[..self.head]).ok()?;
        let mut fields = head.lines().filter_map(|line| line.split_once(':'));
        fields.find_map(|(key, value)| key.eq_ignore_ascii_case(name).then(|| value.trim()))
    }
}
