//! Who starts the server, asks it, kills it, and counts.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    env, fs,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use buttress::idempotency::Refusal;
use buttress_core::clock;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    sync::mpsc,
    task::JoinSet,
    time::sleep,
};

use crate::{LEASE, Mode, Point, Result, STOP, child, support::within};

/// How many requests stand at the point when the server is killed.
const STANDING: usize = 3;
/// How many others are asked for meanwhile at a time, and how many of them have been answered at least.
const PASSING: usize = 2;
const PASSED: usize = 4;

/// How often each key had its effect.
pub(crate) type Effects = HashMap<String, u32>;

/// What somebody who asks is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// It was done just now.
    Fresh,
    /// It was done before.
    Replayed,
    /// Nobody knows whether it was done.
    Unknown,
    /// Somebody is at it.
    InFlight,
}

/// A kind of server, which is killed at one point again and again.
#[derive(Clone, Copy)]
pub(crate) struct Rig {
    /// The test that is the server, if this program is run once more.
    pub(crate) child: &'static str,
    pub(crate) mode: Mode,
    /// Counts from outside what the server has done.
    pub(crate) effects: fn(&Path) -> Effects,
}

/// A server that runs. Dropped, it is killed too.
struct Server {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    started: clock::Instant,
    asker: Asker,
}

impl Server {
    async fn start(rig: Rig, folder: &Path) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", rig.child, "--nocapture"])
            .envs(child::variables(folder, rig.mode))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdout = process.stdout.take().unwrap();
        let mut lines = BufReader::new(stdout).lines();
        let address = hear(&mut lines, "serves ").await;
        Self {
            process,
            lines,
            started: clock::now(),
            asker: Asker {
                url: format!("http://{address}/").into(),
                client: Client::builder(TokioExecutor::new()).build_http(),
            },
        }
    }

    /// Waits until all of these stand at their point.
    async fn stand(&mut self, names: &[String]) {
        let key = |name: &String| format!("{:?}", child::key(name));
        let mut missing: HashSet<String> = names.iter().map(key).collect();
        while !missing.is_empty() {
            // Some say it again at each heartbeat.
            missing.remove(&hear(&mut self.lines, "stands ").await);
        }
    }

    /// Asks for all of these until there are answers that stay, for so many at a time that there are connections for them.
    async fn settle(&self, names: impl IntoIterator<Item = &String>) -> Vec<(String, Told)> {
        let told = stream::iter(names).map(async |name| (name.clone(), self.settles(name).await));
        told.buffered(64).collect().await
    }

    /// Asks until there is an answer that stays. That somebody is at it is true for as long as a lease at most.
    async fn settles(&self, name: &str) -> Told {
        loop {
            let is_late = clock::now() > self.started + LEASE + Duration::from_secs(1);
            match self.asker.ask(name).await.unwrap() {
                Told::InFlight => assert!(!is_late, "{name} is still in flight"),
                told => return told,
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The rest of the next line that starts like this.
async fn hear(lines: &mut Lines<BufReader<ChildStdout>>, start: &str) -> String {
    loop {
        let line = within(lines.next_line()).await.unwrap();
        let line = line.expect("the child goes on");
        if let Some(rest) = line.strip_prefix(start) {
            return rest.into();
        }
    }
}

#[derive(Clone)]
struct Asker {
    url: Arc<str>,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Asker {
    async fn send(&self, name: &str, stop: Option<Point>) -> Result<http::Response<Incoming>> {
        let mut request = Request::post(&*self.url).header("idempotency-key", name);
        if let Some(point) = stop {
            request = request.header(STOP, format!("{point:?}"));
        }
        let request = request.body(Full::new(Bytes::from("apples")))?;
        Ok(within(self.client.request(request)).await?)
    }

    /// Asks for something to be done. It fails if there is nobody to ask.
    async fn ask(&self, name: &str) -> Result<Told> {
        let response = self.send(name, None).await?;
        let status = response.status();
        let is_replay = response.headers().contains_key("idempotency-replayed");
        let body = within(response.into_body().collect()).await?.to_bytes();
        let says = |refusal: Refusal| {
            let problem = serde_json::from_slice::<serde_json::Value>(&body);
            problem.is_ok_and(|problem| problem["code"] == refusal.code())
        };
        let paid = format!("paid {name}");
        Ok(match (status, is_replay) {
            (StatusCode::CREATED, false) if body == paid => Told::Fresh,
            // Of one that was too large nothing was kept but its head.
            (StatusCode::CREATED, true) if body == paid || body.is_empty() => Told::Replayed,
            (StatusCode::CONFLICT, false) if says(Refusal::OutcomeUnknown) => Told::Unknown,
            (StatusCode::CONFLICT, false) if says(Refusal::InFlight) => Told::InFlight,
            _ => panic!("{name}: {status} {body:?}, replayed: {is_replay}"),
        })
    }

    /// Asks for something that stops at a point, and is never answered whole. Says when the answer has begun.
    async fn ask_and_stop(self, name: String, point: Point, begun: mpsc::UnboundedSender<()>) {
        let Ok(mut response) = self.send(&name, Some(point)).await else {
            return;
        };
        assert!(point.is_amid_the_response(), "{name} was answered");
        assert_eq!(response.status(), StatusCode::CREATED);
        let mut first = true;
        while let Some(frame) = within(response.frame()).await {
            if frame.is_err() {
                return;
            }
            if first {
                begun.send(()).unwrap();
                first = false;
            }
        }
        panic!("{name} was answered whole");
    }

    /// Asks for one thing after the other until there is nobody to ask any more. Returns what it asked for, and whether it
    /// was done, as far as it knows.
    async fn ask_on(self, start: String, passed: mpsc::UnboundedSender<()>) -> Vec<(String, bool)> {
        let mut asked = Vec::new();
        loop {
            let name = format!("{start}-{}", asked.len());
            let told = self.ask(&name).await;
            let is_done = told.is_ok();
            if let Ok(told) = told {
                assert_eq!(told, Told::Fresh, "{name}");
                // Nobody may wait for more of them.
                let _ = passed.send(());
            }
            asked.push((name, is_done));
            if !is_done {
                return asked;
            }
        }
    }
}

/// What was asked for in a round.
#[derive(Default)]
struct Keys {
    /// Has been answered.
    done: Vec<String>,
    /// Stood at the point.
    stood: Vec<String>,
    /// Was anywhere between its beginning and its end.
    cut: Vec<String>,
}

impl Rig {
    /// Kills the server at a point so often.
    pub(crate) async fn kill(self, point: Point, rounds: usize) {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Server::start(self, folder.path()).await;
        let mut all = BTreeMap::new();
        for round in 0..rounds {
            let mut keys = self.round(&mut server, point, round).await;
            let ran = (self.effects)(folder.path());
            let notes = fs::read_to_string(folder.path().join("notes")).unwrap();
            let notes = notes.lines().collect();
            server = Server::start(self, folder.path()).await;
            let told = self.settle(&server, point, &keys, (&ran, &notes)).await;
            let late = format!("late-{round}");
            assert_eq!(server.asker.ask(&late).await.unwrap(), Told::Fresh);
            keys.done.push(late.clone());
            all.extend(told);
            all.insert(late, Told::Fresh);
            self.count(&folder, point, &all);
        }
        // Each server that came later knows what each that came earlier did.
        for (name, again) in server.settle(all.keys()).await {
            let first = all[&name];
            let stays = match first {
                Told::Unknown => Told::Unknown,
                _ => Told::Replayed,
            };
            assert_eq!(again, stays, "{point:?}: {name} was {first:?}");
        }
        self.count(&folder, point, &all);
        let count = |what| all.values().filter(|told| **told == what).count();
        println!(
            "{:?}, {point:?}: {} keys, {} fresh, {} replayed, {} unknown after {rounds} kills",
            self.mode,
            all.len(),
            count(Told::Fresh),
            count(Told::Replayed),
            count(Told::Unknown),
        );
    }

    /// Asks for some things that are done, and for some that stop at the point; kills the server when they stand there.
    async fn round(self, server: &mut Server, point: Point, round: usize) -> Keys {
        let mut keys = Keys::default();
        let asker = server.asker.clone();
        for number in 0..2 {
            let name = format!("early-{round}-{number}");
            assert_eq!(asker.ask(&name).await.unwrap(), Told::Fresh);
            keys.done.push(name);
        }
        let (passed, mut others) = mpsc::unbounded_channel();
        let mut passing = JoinSet::new();
        for number in 0..PASSING {
            let start = format!("passing-{round}-{number}");
            passing.spawn(asker.clone().ask_on(start, passed.clone()));
        }
        for _ in 0..PASSED {
            within(others.recv()).await.unwrap();
        }
        let (begun, mut begins) = mpsc::unbounded_channel();
        let mut standing = JoinSet::new();
        // Who holds the store keeps all others from their point.
        let number = if point.holds_the_store() { 1 } else { STANDING };
        for number in 0..number {
            let name = format!("standing-{round}-{number}");
            standing.spawn(
                asker
                    .clone()
                    .ask_and_stop(name.clone(), point, begun.clone()),
            );
            keys.stood.push(name);
        }
        server.stand(&keys.stood).await;
        if point.is_amid_the_response() {
            for _ in &keys.stood {
                within(begins.recv()).await.unwrap();
            }
        }
        if !point.holds_the_store() {
            let name = format!("meanwhile-{round}");
            assert_eq!(asker.ask(&name).await.unwrap(), Told::Fresh);
            keys.done.push(name);
        }
        server.process.kill().await.unwrap();
        standing.join_all().await;
        for (name, is_done) in passing.join_all().await.into_iter().flatten() {
            if is_done {
                keys.done.push(name);
            } else {
                keys.cut.push(name);
            }
        }
        keys
    }

    /// Asks for everything once more, from the moment of the restart until a lease is over and a second more.
    async fn settle(
        self,
        server: &Server,
        point: Point,
        keys: &Keys,
        (ran, notes): (&Effects, &HashSet<&str>),
    ) -> Vec<(String, Told)> {
        let names = [&keys.done, &keys.stood, &keys.cut].into_iter().flatten();
        let told = server.settle(names).await;
        for (name, told) in &told {
            let ran = ran.get(name).copied().unwrap_or_default();
            // Between the two the server may have been killed.
            let was = |what| notes.contains(&*format!("{what}: {:?}", child::key(name)));
            let (may_be_armed, is_armed) = (was("may be armed"), was("is armed"));
            let about = format!("{:?}, {point:?}: {name} ran {ran} times", self.mode);
            if keys.done.contains(name) {
                assert_eq!((*told, ran), (Told::Replayed, 1), "{about}");
            }
            if keys.stood.contains(name) {
                assert_eq!((*told, ran), point.comes_to(self.mode), "{about}");
            }
            match told {
                Told::Fresh => {
                    assert_eq!(ran, 0, "{about}, and was run again");
                    // One whose effect is in the transaction of its completion may be run again all the same.
                    let may = !is_armed || self.mode == Mode::Rerun;
                    assert!(may, "{about}, was armed, and was run again");
                }
                Told::Replayed => assert_eq!(ran, 1, "{about}, and was replayed"),
                Told::Unknown | Told::InFlight => {
                    assert!(may_be_armed, "{about}, and was not armed");
                    assert!(!self.mode.is_all_or_nothing(), "{about}, and is {told:?}");
                }
            }
        }
        told
    }

    /// Nothing was done twice, and everything that was done is known.
    fn count(self, folder: &TempDir, point: Point, all: &BTreeMap<String, Told>) {
        let effects = (self.effects)(folder.path());
        for (name, told) in all {
            let ran = effects.get(name).copied().unwrap_or_default();
            let is_right = match told {
                Told::Unknown | Told::InFlight => ran <= 1,
                Told::Fresh | Told::Replayed => ran == 1,
            };
            assert!(
                is_right,
                "{point:?}: {name} is {told:?}, and ran {ran} times"
            );
        }
        let stray = effects.keys().find(|name| !all.contains_key(*name));
        assert_eq!(stray, None, "{point:?}: nobody asked for it");
    }
}
