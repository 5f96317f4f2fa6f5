//! A server over TCP that speaks HTTP/1 and HTTP/2 by hand, so that it can fail as real ones do.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use buttress::{BoxError, breaker, retry};
use bytes::{Buf, BufMut, Bytes};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Waits for what takes no time unless it hangs.
pub(crate) async fn within<F: Future>(what: F) -> F::Output {
    let limit = Duration::from_secs(10);
    let done = tokio::time::timeout(limit, what).await;
    done.expect("it hangs")
}

/// Lets this time pass in no time, in a test that has one thread. Connections work on as ever; on a clock that stands
/// still they would not, as it runs on whenever nothing but them is waited for.
pub(crate) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Bytes that are nowhere the same.
pub(crate) fn bytes(len: usize) -> Bytes {
    let byte = |place: usize| u8::try_from((place * 31 + place / 251) % 256).unwrap_or_default();
    (0..len).map(byte).collect()
}

/// The events of a layer.
#[derive(Debug)]
pub(crate) struct Told<E>(Arc<Mutex<Vec<E>>>);

impl<E> Default for Told<E> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<E: Clone + Send + 'static> Told<E> {
    pub(crate) fn sink(&self) -> impl Fn(&E) + Send + Sync + 'static {
        let told = self.0.clone();
        move |event| lock(&told).push(event.clone())
    }

    pub(crate) fn all(&self) -> Vec<E> {
        lock(&self.0).clone()
    }
}

impl Told<retry::Event> {
    /// How the last call ended, and how many requests it sent.
    pub(crate) fn finished(&self) -> Option<(retry::Outcome, u32)> {
        lock(&self.0).iter().rev().find_map(|event| match event {
            retry::Event::Finished { outcome, sends, .. } => Some((*outcome, *sends)),
            _ => None,
        })
    }
}

impl Told<breaker::Event> {
    /// How the calls that were let through ended.
    pub(crate) fn calls(&self) -> Vec<(breaker::Outcome, breaker::Reason)> {
        let all = lock(&self.0);
        let call = |event: &breaker::Event| match event {
            breaker::Event::Call {
                outcome, reason, ..
            } => Some((*outcome, *reason)),
            _ => None,
        };
        all.iter().filter_map(call).collect()
    }

    /// What became of the probes.
    pub(crate) fn probes(&self) -> Vec<breaker::ProbeResult> {
        let all = lock(&self.0);
        let probe = |event: &breaker::Event| match event {
            breaker::Event::Probe { result, .. } => Some(*result),
            _ => None,
        };
        all.iter().filter_map(probe).collect()
    }

    /// How many calls were refused.
    pub(crate) fn refused(&self) -> usize {
        let refused = |event: &&breaker::Event| matches!(event, breaker::Event::Refused { .. });
        lock(&self.0).iter().filter(refused).count()
    }

    /// How long the breaker stays open that has opened last.
    pub(crate) fn open_for(&self) -> Option<Duration> {
        lock(&self.0).iter().rev().find_map(|event| match event {
            breaker::Event::Transition { open_for, .. } => *open_for,
            _ => None,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server on a port of its own. Dropped, it hangs up on everybody.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    log: Arc<Log>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Log {
    connections: AtomicUsize,
    turns: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
}

/// A request that the server has read to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// As it came: the lines of HTTP/1, or the header block of HTTP/2.
    pub(crate) head: Vec<u8>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<u8>,
}

impl Seen {
    /// The value of a header of HTTP/1, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        let mut lines = self.head.split(|byte| *byte == b'\n');
        lines.find_map(|line| {
            let value = line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?;
            Some(value.trim_ascii())
        })
    }
}

impl Server {
    /// Serves each connection as `serve` says, until the future ends.
    pub(crate) async fn start<F>(
        serve: impl Fn(Connection) -> F + Send + Sync + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        Self::on(TcpListener::bind("127.0.0.1:0").await?, serve)
    }

    pub(crate) fn on<F>(
        listener: TcpListener,
        serve: impl Fn(Connection) -> F + Send + Sync + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let address = listener.local_addr()?;
        let log = Arc::new(Log::default());
        let mut tasks = JoinSet::new();
        let accepted = log.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let number = accepted.connections.fetch_add(1, Ordering::SeqCst);
                // A client that hangs up is no failure of the server's.
                connections.spawn(serve(Connection {
                    io: BufReader::new(stream),
                    number,
                    log: accepted.clone(),
                }));
            }
        });
        Ok(Self {
            address,
            log,
            _tasks: tasks,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// The connections that were accepted.
    pub(crate) fn connections(&self) -> usize {
        self.log.connections.load(Ordering::SeqCst)
    }

    /// The requests that were read to their ends.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        lock(&self.log.seen).clone()
    }
}

/// A connection of the server's. Dropped, it is closed.
pub(crate) struct Connection {
    io: BufReader<TcpStream>,
    /// Which one it is, from 0.
    pub(crate) number: usize,
    log: Arc<Log>,
}

impl Connection {
    /// Counts the requests of all connections together, from 0, whatever becomes of them.
    pub(crate) fn turn(&self) -> usize {
        self.log.turns.fetch_add(1, Ordering::SeqCst)
    }

    /// Waits for something to read. Is there anything before the end?
    pub(crate) async fn arrives(&mut self) -> io::Result<bool> {
        Ok(self.io.get_ref().peek(&mut [0]).await? > 0)
    }

    /// Waits until the client hangs up.
    pub(crate) async fn closes(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.io.read_to_end(&mut rest).await?;
        Ok(rest)
    }

    /// Ends the connection with a FIN, even where something has arrived that nobody has read.
    pub(crate) async fn finish(mut self) -> io::Result<()> {
        self.io.shutdown().await?;
        self.closes().await.map(drop)
    }

    /// Ends the connection with a RST in place of a FIN.
    pub(crate) fn reset(self) -> io::Result<()> {
        self.io.get_ref().set_zero_linger()
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.io.write_all(bytes.as_ref()).await?;
        self.io.flush().await
    }

    /// Answers in HTTP/1.
    pub(crate) async fn answer(&mut self, status: u16, body: &[u8]) -> io::Result<()> {
        let head = format!(
            "HTTP/1.1 {status} _\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.write([head.as_bytes(), body].concat()).await
    }

    /// Reads a request of HTTP/1 to its end.
    pub(crate) async fn read(&mut self) -> io::Result<Seen> {
        let mut seen = Seen {
            head: self.head().await?,
            ..Seen::default()
        };
        if let Some(length) = seen.header("content-length") {
            let length = std::str::from_utf8(length)
                .ok()
                .and_then(|text| text.parse().ok());
            seen.body = vec![0; length.unwrap_or_default()];
            self.io.read_exact(&mut seen.body).await?;
        } else if seen.header("transfer-encoding").is_some() {
            while let Some(chunk) = self.chunk().await? {
                seen.body.extend(chunk);
            }
            seen.trailers = self.head().await?;
        }
        self.saw(seen.clone());
        Ok(seen)
    }

    fn saw(&self, seen: Seen) {
        lock(&self.log.seen).push(seen);
    }

    /// Reads lines to the first empty one.
    pub(crate) async fn head(&mut self) -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        loop {
            let start = head.len();
            self.io.read_until(b'\n', &mut head).await?;
            match &head[start..] {
                b"\r\n" => return Ok(head),
                [.., b'\n'] => {}
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// Reads a chunk of a body in HTTP/1, or its last one, which is empty.
    pub(crate) async fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = String::new();
        self.io.read_line(&mut line).await?;
        let length = usize::from_str_radix(line.trim(), 16)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if length == 0 {
            return Ok(None);
        }
        let mut chunk = vec![0; length + 2];
        self.io.read_exact(&mut chunk).await?;
        chunk.truncate(length);
        Ok(Some(chunk))
    }
}

/// A connection of the server's that speaks HTTP/2 (RFC 9113), one stream at a time.
pub(crate) struct Http2Connection(pub(crate) Connection);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Http2Connection {
    /// Reads the preface, and sends settings.
    pub(crate) async fn accept(
        mut connection: Connection,
        settings: &[(u16, u32)],
    ) -> io::Result<Self> {
        connection.io.read_exact(&mut [0; 24]).await?;
        let mut this = Self(connection);
        let setting =
            |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        let payload = settings.iter().flat_map(setting).collect::<Vec<_>>();
        this.write(SETTINGS, 0, 0, &payload).await?;
        Ok(this)
    }

    /// Reads a request to its end, and says which stream it is.
    pub(crate) async fn read(&mut self) -> io::Result<(u32, Seen)> {
        let (stream, seen) = self.read_up_to(usize::MAX).await?;
        self.0.saw(seen.clone());
        Ok((stream, seen))
    }

    /// Reads a request until this much of its body has come, or to its end.
    pub(crate) async fn read_up_to(&mut self, length: usize) -> io::Result<(u32, Seen)> {
        let mut seen = Seen::default();
        let mut stream = 0;
        loop {
            let frame = self.frame().await?;
            match frame.kind {
                SETTINGS | PING if frame.flags & ACK == 0 => {
                    let answer = if frame.kind == PING {
                        &frame.payload[..]
                    } else {
                        &[]
                    };
                    self.write(frame.kind, ACK, 0, answer).await?;
                }
                HEADERS if frame.stream != stream => {
                    (stream, seen.head) = (frame.stream, frame.payload);
                }
                HEADERS => seen.trailers = frame.payload,
                DATA if frame.stream == stream => seen.body.extend(frame.payload),
                _ => continue,
            }
            let ended = matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM > 0;
            if ended || seen.body.len() >= length {
                return Ok((stream, seen));
            }
        }
    }

    /// Answers 200, or else 500, without a body.
    pub(crate) async fn answer(&mut self, stream: u32, ok: bool) -> io::Result<()> {
        // The entries 8 and 14 of HPACK's static table (RFC 7541, appendix A).
        let status = if ok { 0x88 } else { 0x8e };
        self.write(HEADERS, END_HEADERS | END_STREAM, stream, &[status])
            .await
    }

    pub(crate) async fn rst_stream(&mut self, stream: u32, reason: h2::Reason) -> io::Result<()> {
        self.write(RST_STREAM, 0, stream, &u32::from(reason).to_be_bytes())
            .await
    }

    /// Says that no stream above `last` will be looked at.
    pub(crate) async fn go_away(&mut self, last: u32, reason: h2::Reason) -> io::Result<()> {
        let payload = [last.to_be_bytes(), u32::from(reason).to_be_bytes()].concat();
        self.write(GOAWAY, 0, 0, &payload).await
    }

    async fn frame(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.0.io.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.io.read_exact(&mut payload).await?;
        Ok(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
            payload,
        })
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len())
            .map_err(io::Error::other)?
            .to_be_bytes();
        let head = [length[1], length[2], length[3], kind, flags];
        self.0
            .write([&head[..], &stream.to_be_bytes(), payload].concat())
            .await
    }
}

/// An error, and what caused it, in a line.
pub(crate) fn causes(error: &BoxError) -> String {
    let causes = buttress_core::chain(&**error).map(ToString::to_string);
    causes.collect::<Vec<_>>().join(": ")
}

/// A message of gRPC as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
