//! Requests with a key over connections that are made by hand: clients that go away or read slowly, bodies that are large,
//! and a server in a process of its own.

mod support;

use std::{
    collections::HashSet,
    env,
    fs::{self, OpenOptions},
    future::IntoFuture,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
    routing::any,
};
use buttress::{
    BoxError,
    idempotency::{Global, IdempotencyLayer, MemoryStore},
    sqlite::SqliteStore,
};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, Full, channel::Channel};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};
use support::{bytes, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::sleep,
};

type Result<T = (), E = BoxError> = std::result::Result<T, E>;

const KEY: &str = "8e03978e-40d5-43dd-bc93-6894a57f9324";
const MIB: usize = 1 << 20;

fn size(usual: usize, full: usize) -> usize {
    env::var_os("BUTTRESS_FULL").map_or(usual, |_| full)
}

fn layer() -> IdempotencyLayer<MemoryStore, Global> {
    IdempotencyLayer::new(MemoryStore::new(), Global)
}

/// What the handlers of a server do together.
#[derive(Clone)]
struct Shop {
    runs: Arc<AtomicUsize>,
    /// The calls that were dropped before they had an answer.
    gone: Arc<AtomicUsize>,
    /// How many handlers may go on.
    go: Arc<Semaphore>,
}

impl Shop {
    fn new() -> Self {
        Self {
            runs: Arc::default(),
            gone: Arc::default(),
            go: Arc::new(Semaphore::new(0)),
        }
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    fn go(&self) {
        self.go.add_permits(1);
    }

    /// Serves on a port of its own, as long as the test runs.
    async fn serve(&self, layer: IdempotencyLayer<MemoryStore, Global>) -> Result<SocketAddr> {
        let app = Router::new()
            .route("/{*what}", any(handle))
            .with_state(self.clone());
        let app = app.layer(layer);
        let app = app.layer(middleware::from_fn_with_state(self.clone(), watch));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(axum::serve(listener, app).into_future());
        Ok(address)
    }
}

/// Notices when nobody waits for an answer any more.
async fn watch(State(shop): State<Shop>, request: Request, next: Next) -> Response {
    struct Watched(Option<Arc<AtomicUsize>>);

    impl Drop for Watched {
        fn drop(&mut self) {
            if let Some(gone) = &self.0 {
                gone.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    let mut watched = Watched(Some(shop.gone));
    let response = next.run(request).await;
    watched.0 = None;
    response
}

/// Answers as the path says, and counts how often it did.
async fn handle(State(shop): State<Shop>, request: Request) -> Result<Response, StatusCode> {
    let path = request.uri().path().to_owned();
    let order = request.into_body().collect().await;
    let order = order.map_err(|_| StatusCode::BAD_REQUEST)?.to_bytes();
    let run = shop.runs.fetch_add(1, Ordering::SeqCst) + 1;
    let said = format!("run {run} of {} bytes", order.len());
    let response = Response::builder().status(201);
    let response = match &*path {
        // Its effect is seen, and then it takes its time.
        "/held" => {
            let go = shop.go.acquire().await;
            go.map_err(|_| StatusCode::GONE)?.forget();
            response.header("location", "/1").body(said.into())
        }
        "/whole" => response.body(Body::from(bytes(8 * MIB))),
        "/streamed" => {
            let (mut parts, body) = Channel::<Bytes, BoxError>::new(1);
            tokio::spawn(async move {
                let all = bytes(10_000_000);
                for (number, part) in all.chunks(10_000).enumerate() {
                    if number == 1 {
                        shop.go.acquire().await?.forget();
                    }
                    parts.send_data(Bytes::copy_from_slice(part)).await?;
                }
                Ok::<_, BoxError>(())
            });
            response.header("etag", "\"1\"").body(Body::new(body))
        }
        "/no-store" => {
            let response = response.header("cache-control", "no-store");
            response.body(said.into())
        }
        "/cookie" => {
            let response = response.header("set-cookie", "session=alice");
            response.body(said.into())
        }
        "/many" => response
            .header("link", "</a>; rel=x")
            .header("content-language", "de")
            .header("link", "</b>; rel=y")
            .header("content-type", "text/plain")
            .header("link", "</a>; rel=x")
            .body(said.into()),
        "/302" => response
            .header("location", "/2")
            .status(302)
            .body(Body::empty()),
        "/204" => response.status(204).body(Body::empty()),
        status => {
            let status: u16 = status[1..].parse().map_err(|_| StatusCode::NOT_FOUND)?;
            response.status(status).body(said.into())
        }
    };
    response.map_err(|_| StatusCode::BAD_REQUEST)
}

/// A connection of a client's.
enum Client {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    async fn connect(address: SocketAddr, http2: bool) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        if http2 {
            let (client, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            return Ok(Self::Http2(client));
        }
        let (client, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        Ok(Self::Http1(client))
    }

    async fn send(&mut self, path: &str, key: &str) -> Result<http::Response<Incoming>> {
        let request = http::Request::post(format!("http://shop{path}"))
            .header("host", "shop")
            .header("idempotency-key", key)
            .body(Full::new(Bytes::from("apples")))?;
        match self {
            Self::Http1(client) => {
                within(client.ready()).await?;
                Ok(within(client.send_request(request)).await?)
            }
            Self::Http2(client) => {
                within(client.ready()).await?;
                Ok(within(client.send_request(request)).await?)
            }
        }
    }

    async fn ask(&mut self, path: &str, key: &str) -> Result<Answer> {
        Answer::of(self.send(path, key).await?).await
    }

    /// Asks until nobody is at it any more.
    async fn ask_again(&mut self, path: &str, key: &str) -> Result<Answer> {
        loop {
            let answer = self.ask(path, key).await?;
            if answer.status != StatusCode::CONFLICT {
                return Ok(answer);
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    async fn of(response: http::Response<Incoming>) -> Result<Self> {
        let (head, body) = response.into_parts();
        Ok(Self {
            status: head.status,
            headers: head.headers,
            body: within(body.collect()).await?.to_bytes(),
        })
    }

    fn is_replay(&self) -> bool {
        self.headers.contains_key("idempotency-replayed")
    }
}

/// Waits until a counter is there.
async fn until(counter: &AtomicUsize, number: usize) {
    let wait = async {
        while counter.load(Ordering::SeqCst) < number {
            sleep(Duration::from_millis(1)).await;
        }
    };
    within(wait).await;
}

// promise: ID-1
#[tokio::test]
async fn a_thousand_posts_over_eight_connections_are_one() -> Result {
    for (http2, waits) in [(false, false), (false, true), (true, false), (true, true)] {
        let layer = if waits {
            layer().wait(Duration::from_secs(5))
        } else {
            layer()
        };
        let shop = Shop::new();
        let address = shop.serve(layer).await?;
        let mut clients = Vec::new();
        for _ in 0..8 {
            match Client::connect(address, http2).await? {
                // Over HTTP/2 all of them are sent at once.
                Client::Http2(client) => {
                    clients.extend((0..125).map(|_| Client::Http2(client.clone())));
                }
                client @ Client::Http1(_) => clients.push(client),
            }
        }
        let refused = AtomicUsize::new(0);
        let shop_opens = async {
            if waits {
                sleep(Duration::from_millis(50)).await;
            } else {
                // It is under way as long as others ask.
                until(&refused, 999).await;
            }
            shop.go();
        };
        // Whichever connection is free takes the next one.
        let taken = AtomicUsize::new(0);
        let work = clients.into_iter().map(async |mut client| {
            let mut answers = Vec::new();
            while taken.fetch_add(1, Ordering::SeqCst) < 1_000 {
                let answer = client.ask("/held", KEY).await?;
                let is_refused = answer.status == StatusCode::CONFLICT;
                refused.fetch_add(usize::from(is_refused), Ordering::SeqCst);
                answers.push(answer);
            }
            Ok::<_, BoxError>(answers)
        });
        let (answers, ()) = tokio::join!(join_all(work), shop_opens);
        let mut counts = (0, 0, 0);
        for answer in answers {
            for answer in answer? {
                if answer.status == StatusCode::CONFLICT {
                    let wait = answer.headers["retry-after"].to_str()?;
                    assert!(wait.parse::<u64>()? >= 1);
                    counts.2 += 1;
                    continue;
                }
                assert_eq!(answer.status, StatusCode::CREATED);
                assert_eq!(answer.body, "run 1 of 6 bytes");
                counts.0 += usize::from(!answer.is_replay());
                counts.1 += usize::from(answer.is_replay());
            }
        }
        let expected = if waits { (1, 999, 0) } else { (1, 0, 999) };
        assert_eq!(counts, expected, "HTTP/2: {http2}");
        let mut client = Client::connect(address, http2).await?;
        for _ in 0..1_000 {
            let answer = client.ask("/held", KEY).await?;
            assert!(answer.status == StatusCode::CREATED && answer.is_replay());
            assert_eq!(answer.body, "run 1 of 6 bytes");
        }
        assert_eq!(shop.runs(), 1);
    }
    Ok(())
}

/// How a client goes away.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    Fin,
    Reset,
    RstStream,
    /// It says that it is going, and goes.
    GoAway,
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .unwrap_or_default()
        .to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

/// A POST of six bytes with the key, as it is on the wire.
fn wire(http2: bool, path: &str) -> Vec<u8> {
    if !http2 {
        let head = "host: shop\r\ncontent-length: 6\r\nidempotency-key";
        return format!("POST {path} HTTP/1.1\r\n{head}: {KEY}\r\n\r\napples").into_bytes();
    }
    // Literals of HPACK without an index (RFC 7541, 6.2.2), none of which has more than 126 bytes.
    let text = |text: &str| {
        let length = u8::try_from(text.len()).unwrap_or_default();
        [&[length], text.as_bytes()].concat()
    };
    // POST and http are entries of the static table.
    let headers = [
        vec![0x83, 0x86],
        [vec![4], text(path)].concat(),
        [vec![1], text("shop")].concat(),
        [vec![0], text("idempotency-key"), text(KEY)].concat(),
    ];
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, &headers.concat()),
        frame(0, 1, 1, b"apples"),
    ]
    .concat()
}

// promise: ID-3
#[tokio::test]
async fn a_client_that_goes_away_has_not_taken_the_handler_with_it() -> Result {
    for (http2, leaves) in [
        (false, Leaves::Fin),
        (false, Leaves::Reset),
        (true, Leaves::Fin),
        (true, Leaves::Reset),
        (true, Leaves::RstStream),
        (true, Leaves::GoAway),
    ] {
        let shop = Shop::new();
        let address = shop.serve(layer()).await?;
        let mut connection = TcpStream::connect(address).await?;
        connection.set_nodelay(true)?;
        connection.write_all(&wire(http2, "/held")).await?;
        until(&shop.runs, 1).await;
        let cancel = 8_u32.to_be_bytes();
        let _half = match leaves {
            Leaves::Reset => {
                connection.set_zero_linger()?;
                drop(connection);
                None
            }
            Leaves::RstStream => {
                connection.write_all(&frame(3, 0, 1, &cancel)).await?;
                Some(connection)
            }
            Leaves::GoAway => {
                connection.write_all(&frame(7, 0, 0, &[0; 8])).await?;
                connection.shutdown().await?;
                Some(connection)
            }
            Leaves::Fin => {
                connection.shutdown().await?;
                Some(connection)
            }
        };
        until(&shop.gone, 1).await;
        // He is back before it is done.
        let mut client = Client::connect(address, http2).await?;
        let answer = client.ask("/held", KEY).await?;
        assert_eq!(answer.status, StatusCode::CONFLICT, "{http2} {leaves:?}");
        shop.go();
        let answer = client.ask_again("/held", KEY).await?;
        assert_eq!(answer.status, StatusCode::CREATED, "{http2} {leaves:?}");
        assert!(answer.is_replay());
        assert_eq!(answer.body, "run 1 of 6 bytes");
        assert_eq!((shop.runs(), shop.gone.load(Ordering::SeqCst)), (1, 1));
    }
    Ok(())
}

// promise: ID-3
#[tokio::test]
async fn a_client_that_reads_slowly_holds_nothing_up() -> Result {
    for http2 in [false, true] {
        for most in [16 * MIB, MIB] {
            let shop = Shop::new();
            let layer = layer().max_response(most);
            let address = shop.serve(layer).await?;
            let mut slow = Client::connect(address, http2).await?;
            // He has the head, and reads nothing more.
            let response = slow.send("/whole", KEY).await?;
            let mut client = Client::connect(address, http2).await?;
            let again = client.ask_again("/whole", KEY).await?;
            assert!(again.is_replay());
            let kept = if most > MIB {
                bytes(8 * MIB)
            } else {
                Bytes::new()
            };
            assert!(again.body == kept, "{} bytes", again.body.len());
            assert!(!response.body().is_end_stream());
            let whole = Answer::of(response).await?.body;
            assert!(whole == bytes(8 * MIB), "{} bytes", whole.len());
            assert_eq!(shop.runs(), 1);
        }
    }
    Ok(())
}

// promise: ID-4
#[tokio::test]
async fn what_is_streamed_comes_as_it_is_made_and_is_made_once() -> Result {
    for http2 in [false, true] {
        let shop = Shop::new();
        let address = shop.serve(layer()).await?;
        let mut client = Client::connect(address, http2).await?;
        let mut response = client.send("/streamed", KEY).await?;
        let mut whole = Vec::new();
        while whole.len() < 10_000 {
            let part = within(response.frame()).await.ok_or("it has ended")??;
            whole.extend(part.into_data().unwrap_or_default());
        }
        assert_eq!(whole.len(), 10_000, "the rest is not made yet");
        shop.go();
        let rest = Answer::of(response).await?;
        whole.extend(&rest.body);
        assert!(whole == bytes(10_000_000), "{} bytes", whole.len());
        // It was too large to be kept, and is not made again for that.
        let again = client.ask_again("/streamed", KEY).await?;
        assert!(again.is_replay() && again.body.is_empty());
        assert_eq!(
            (again.status, &again.headers["etag"]),
            (rest.status, &rest.headers["etag"])
        );
        assert_eq!(shop.runs(), 1);
    }
    Ok(())
}

// promise: ID-4
#[tokio::test]
async fn no_answer_is_a_reason_to_do_it_twice() -> Result {
    for http2 in [false, true] {
        let shop = Shop::new();
        let address = shop.serve(layer()).await?;
        let mut client = Client::connect(address, http2).await?;
        let paths = [
            "/no-store",
            "/cookie",
            "/400",
            "/500",
            "/501",
            "/502",
            "/503",
            "/504",
        ];
        for (place, path) in paths.into_iter().enumerate() {
            let first = client.ask(path, path).await?;
            for _ in 0..3 {
                let again = client.ask(path, path).await?;
                assert!(again.is_replay(), "{path}");
                assert_eq!((again.status, &again.body), (first.status, &first.body));
                assert_eq!(
                    again.headers.get("set-cookie"),
                    None,
                    "it was for the first"
                );
            }
            assert_eq!(shop.runs(), place + 1, "{path}");
        }
    }
    Ok(())
}

// promise: ID-5
#[tokio::test]
async fn a_replay_is_the_same_on_the_wire_but_for_its_marker_and_the_date() -> Result {
    let shop = Shop::new();
    let address = shop.serve(layer()).await?;
    for (place, path) in ["/many", "/201", "/204", "/302", "/404"]
        .into_iter()
        .enumerate()
    {
        let mut answers = Vec::new();
        for _ in 0..2 {
            let mut connection = TcpStream::connect(address).await?;
            let request = String::from_utf8(wire(false, path))?;
            let request = request.replace(KEY, &format!("{path}\r\nconnection: close"));
            connection.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            within(connection.read_to_string(&mut answer)).await?;
            let lines = answer.split("\r\n").map(str::to_owned);
            let lines = lines.filter(|line| !line.starts_with("date:"));
            answers.push(lines.collect::<Vec<_>>());
        }
        let marker = answers[1]
            .iter()
            .position(|line| line == "idempotency-replayed: true");
        answers[1].remove(marker.ok_or("it is not marked")?);
        assert_eq!(answers[0], answers[1], "{path}");
        assert_eq!(shop.runs(), place + 1);
    }
    Ok(())
}

/// Where the child finds its files. Without it there is no child, and its test does nothing.
const FOLDER: &str = "BUTTRESS_SOCKETS_CHILD";

/// A server in a process of its own.
struct Served {
    child: Child,
    said: std::io::Lines<BufReader<std::process::ChildStdout>>,
    address: SocketAddr,
}

impl Served {
    fn start(folder: &Path) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .args(["--exact", "child_that_serves", "--nocapture"])
            .env(FOLDER, folder)
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("it has no output")?;
        let mut said = BufReader::new(stdout).lines();
        let address = hears(&mut said, "address ")?.parse()?;
        Ok(Self {
            child,
            said,
            address,
        })
    }

    /// The value of a line of its status, in bytes. Only Linux has it.
    fn status(&self, name: &str) -> Result<usize> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = value.and_then(|value| value.trim().strip_suffix(" kB"));
        Ok(kib.ok_or("it is not there")?.parse::<usize>()? * 1_024)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The rest of the next line that begins so.
fn hears(said: &mut impl Iterator<Item = std::io::Result<String>>, begins: &str) -> Result<String> {
    for line in said {
        // The first one may stand behind what the test harness says.
        if let Some((_, rest)) = line?.split_once(begins) {
            return Ok(rest.to_owned());
        }
    }
    Err("it has ended".into())
}

/// One write, so that no line is torn.
fn say(line: &str) {
    let _ = std::io::stdout().write_all(format!("\n{line}\n").as_bytes());
}

/// Writes one line for each run into the ledger, on the disk before it answers.
async fn pay(ledger: Arc<fs::File>, request: Request) -> Result<String, StatusCode> {
    let order = request.headers().get("x-order");
    let order = order.and_then(|order| order.to_str().ok());
    let order = order.ok_or(StatusCode::BAD_REQUEST)?.to_owned();
    let write = move || {
        (&*ledger).write_all(format!("{order}\n").as_bytes())?;
        ledger.sync_data()
    };
    let written = tokio::task::spawn_blocking(write).await;
    match written {
        Ok(Ok(())) => Ok("paid".into()),
        _ => Err(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// Reads a body as a stream, and says when its first part is there.
async fn upload(request: Request) -> Result<String, StatusCode> {
    let mut body = request.into_body();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        if length == 0 {
            say("first part");
        }
        length += frame.into_data().unwrap_or_default().len();
    }
    Ok(length.to_string())
}

/// Serves in the child, until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_serves() -> Result {
    let Some(folder) = env::var_os(FOLDER) else {
        return Ok(());
    };
    let ledger = Path::new(&folder).join("ledger");
    let ledger = OpenOptions::new().create(true).append(true).open(ledger)?;
    let ledger = Arc::new(ledger);
    let app = Router::new()
        .route("/pay", any(move |request| pay(ledger.clone(), request)))
        .route("/upload", any(upload))
        .layer(layer());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say(&format!("address {}", listener.local_addr()?));
    Ok(axum::serve(listener, app).await?)
}

// promise: ID-2
#[tokio::test]
async fn every_key_is_done_once_over_sixty_four_connections() -> Result {
    let folder = tempfile::tempdir()?;
    let server = Served::start(folder.path())?;
    let keys = size(1_000, 10_000);
    let mut attempts: Vec<usize> = (0..keys * 5).map(|attempt| attempt % keys).collect();
    attempts.shuffle(&mut SmallRng::seed_from_u64(2));
    let connections = attempts.chunks(attempts.len().div_ceil(64));
    assert_eq!(connections.len(), 64);
    let work = connections.map(async |keys| {
        let stream = TcpStream::connect(server.address).await?;
        let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        for key in keys {
            let request = http::Request::post("/pay")
                .header("host", "shop")
                .header("x-order", key.to_string())
                .header("idempotency-key", format!("order:{key}"))
                .body(Full::new(Bytes::from("apples")))?;
            let response = within(client.send_request(request)).await?;
            let known = [StatusCode::OK, StatusCode::CONFLICT].contains(&response.status());
            assert!(known, "{response:?}");
            within(response.into_body().collect()).await?;
        }
        Ok::<_, BoxError>(())
    });
    for done in join_all(work).await {
        done?;
    }
    let ledger = fs::read_to_string(folder.path().join("ledger"))?;
    let lines: Vec<&str> = ledger.lines().collect();
    let distinct: HashSet<&str> = lines.iter().copied().collect();
    assert_eq!((lines.len(), distinct.len()), (keys, keys));
    Ok(())
}

// promise: ID-9
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_large_upload_is_read_as_it_comes_and_takes_no_memory() -> Result {
    let folder = tempfile::tempdir()?;
    let mut server = Served::start(folder.path())?;
    let length = size(64 * MIB, 1_024 * MIB);
    let part = bytes(64 * 1_024);
    for replayed in [false, true] {
        let mut connection = TcpStream::connect(server.address).await?;
        let head = "POST /upload HTTP/1.1\r\nhost: shop\r\nconnection: close";
        let head = format!("{head}\r\ncontent-length: {length}\r\nidempotency-key: {KEY}\r\n\r\n");
        connection.write_all(head.as_bytes()).await?;
        connection.write_all(&part).await?;
        if !replayed {
            // The client has sent no more than that.
            hears(&mut server.said, "first part")?;
        }
        let before = server.status("VmRSS")?;
        for _ in 1..length / part.len() {
            within(connection.write_all(&part)).await?;
        }
        let mut answer = String::new();
        within(connection.read_to_string(&mut answer)).await?;
        let grown = server.status("VmHWM")?.saturating_sub(before);
        println!("{length} bytes, replayed: {replayed}; it has grown by {grown}");
        assert!(answer.ends_with(&format!("\r\n\r\n{length}")), "{answer}");
        assert_eq!(answer.contains("idempotency-replayed: true"), replayed);
        assert!(grown < 8 * MIB, "{grown} bytes");
    }
    Ok(())
}

// promise: ID-22
#[tokio::test]
async fn a_key_is_in_no_file_of_the_store() -> Result {
    let folder = tempfile::tempdir()?;
    let store = SqliteStore::create(folder.path().join("x.db"))?;
    let user = |parts: &http::request::Parts| {
        let user = parts.headers.get("x-user")?.to_str().ok()?;
        Some(user.to_owned())
    };
    let layer = IdempotencyLayer::new(store, user);
    let shop = Shop::new();
    let app = Router::new()
        .route("/{*what}", any(handle))
        .with_state(shop.clone())
        .layer(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, app).into_future());
    let stream = TcpStream::connect(address).await?;
    let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    // One that is running, one that is done, and one that is another request.
    let mut statuses = Vec::new();
    for (path, user) in [
        ("/201", Some("alice")),
        ("/201", Some("alice")),
        ("/201", Some("mallory")),
        ("/202", Some("alice")),
        ("/201", None),
    ] {
        let mut request = http::Request::post(path)
            .header("host", "shop")
            .header("idempotency-key", format!("\"{KEY}\""));
        if let Some(user) = user {
            request = request.header("x-user", user);
        }
        let request = request.body(Full::new(Bytes::from("apples")))?;
        client.ready().await?;
        let answer = Answer::of(within(client.send_request(request)).await?).await?;
        let body = String::from_utf8(answer.body.to_vec())?;
        assert!(!body.contains(KEY) && !format!("{:?}", answer.headers).contains(KEY));
        statuses.push((
            answer.status.as_u16(),
            answer.headers.contains_key("idempotency-replayed"),
        ));
        let mut looked = 0;
        for file in fs::read_dir(folder.path())? {
            let file = file?.path();
            let bytes = fs::read(&file)?;
            looked += bytes.len();
            let has_key = bytes.windows(KEY.len()).any(|part| part == KEY.as_bytes());
            assert!(!has_key, "{}", file.display());
        }
        assert!(looked > 4_096, "there is something in them");
    }
    let expected = [
        (201, false),
        (201, true),
        (201, false),
        (422, false),
        (403, false),
    ];
    assert_eq!((statuses, shop.runs()), (expected.to_vec(), 2));
    Ok(())
}
