//! A process that is killed, again and again: this program itself, run once more.

mod support;

use std::{
    env,
    fs::{self, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use buttress_idempotency::{
    Store,
    record::{Answer, State, Token},
};
use buttress_sqlite::{SqliteStore, rusqlite::TransactionBehavior};
use rand::RngExt;
use support::{TTL, claim, claim_as, completion, key, size, win};

/// Where the child finds its files. Without it there is no child, and its test does nothing.
const FOLDER: &str = "BUTTRESS_SQLITE_CHILD";

fn child(test: &str, folder: &Path) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Kills the child after it has said so many lines and a moment more, and returns all that it said.
fn kill_after(mut child: Child, lines: usize) -> Vec<String> {
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut heard: Vec<String> = Vec::new();
    while heard.iter().filter(|line| is_number(line)).count() < lines {
        heard.push(said.next().expect("the child goes on").unwrap());
    }
    // Not right after a line, when it may be sure to be between two transactions.
    let spin = rand::rng().random_range(0..200_000);
    for _ in 0..spin {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    heard.extend(said.map_while(Result::ok));
    heard.retain(|line| is_number(line.as_str()));
    heard
}

fn is_number(line: &str) -> bool {
    line.parse::<u64>().is_ok()
}

/// Claims keys in the child, 32 at a time, and says each of them when it has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_claims() {
    let Some(folder) = env::var_os(FOLDER) else {
        return;
    };
    let store = SqliteStore::open(Path::new(&folder).join("x.db")).unwrap();
    let start: u64 = rand::random::<u32>().into();
    let mut all = tokio::task::JoinSet::new();
    for submitter in 0..32_u64 {
        let store = store.clone();
        all.spawn(async move {
            for number in 0.. {
                let name = (start << 24) + (submitter << 16) + number;
                win(&store, &key(name), Token(name.into())).await;
                // One write, so that no line is torn unless the process is.
                let line = format!("{name}\n");
                std::io::stdout().write_all(line.as_bytes()).unwrap();
            }
        });
    }
    all.join_all().await;
}

// promise: ID-18
#[tokio::test]
async fn every_acknowledged_claim_is_there_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let mut claimed: Vec<String> = Vec::new();
    for round in 0..size(4, 25) {
        let child = child("child_that_claims", folder.path());
        let lines = rand::rng().random_range(1..1_500);
        claimed.extend(kill_after(child, lines));
        let store = SqliteStore::open(folder.path().join("x.db")).unwrap();
        for name in &claimed {
            let record = store.get(&key(name)).await.unwrap();
            let record = record.unwrap_or_else(|| panic!("{name} is not there after {round}"));
            assert!(!matches!(record.state, State::Done { .. }));
            let again = store.step(&key(name), claim(Token::random())).await;
            // Unknown, when the kills have taken longer than a lease.
            let again = again.unwrap();
            let is_there = matches!(again, Answer::InFlight { .. } | Answer::Unknown);
            assert!(is_there, "{again:?}");
        }
    }
    println!("{} claims were acknowledged", claimed.len());
}

/// Books payments in the child, each in one transaction with its completion, and says each of them.
#[tokio::test]
async fn child_that_pays() {
    let Some(folder) = env::var_os(FOLDER) else {
        return;
    };
    let store = SqliteStore::open(Path::new(&folder).join("x.db")).unwrap();
    let mut connection = store.connect().unwrap();
    let table = "CREATE TABLE IF NOT EXISTS payments (request INTEGER)";
    connection.execute_batch(table).unwrap();
    let begun = Path::new(&folder).join("begun");
    let mut begun = OpenOptions::new()
        .create(true)
        .append(true)
        .open(begun)
        .unwrap();
    let start: u64 = rand::random::<u32>().into();
    for number in 0.. {
        let name = (start << 24) + number;
        let token = Token(name.into());
        writeln!(begun, "{name}").unwrap();
        let won = store.step(&key(name), claim_as(token, false)).await;
        assert!(matches!(won, Ok(Answer::Won { .. })), "{won:?}");
        let immediate = TransactionBehavior::Immediate;
        let transaction = connection.transaction_with_behavior(immediate).unwrap();
        transaction
            .execute("INSERT INTO payments VALUES (?1)", [name.cast_signed()])
            .unwrap();
        store
            .complete_in(&transaction, &key(name), token, completion(name), TTL)
            .unwrap();
        transaction.commit().unwrap();
        println!("{name}");
    }
}

// promises: ID-12, ID-21
#[tokio::test]
async fn after_a_kill_an_effect_and_its_completion_are_both_there_or_neither() {
    let folder = tempfile::tempdir().unwrap();
    let mut paid = Vec::new();
    for _ in 0..size(4, 20) {
        let child = child("child_that_pays", folder.path());
        let lines = rand::rng().random_range(1..60);
        paid.extend(kill_after(child, lines));
    }
    let store = SqliteStore::open(folder.path().join("x.db")).unwrap();
    let connection = store.connect().unwrap();
    let begun = fs::read_to_string(folder.path().join("begun")).unwrap();
    let mut none = 0;
    for name in begun.lines().filter(|line| is_number(line)) {
        let number: i64 = name.parse().unwrap();
        let count = "SELECT count(*) FROM payments WHERE request = ?1";
        let effects: u32 = connection
            .query_row(count, [number], |row| row.get(0))
            .unwrap();
        let state = store
            .get(&key(name))
            .await
            .unwrap()
            .map(|record| record.state);
        match (effects, &state) {
            (
                1,
                Some(State::Done {
                    completion: done, ..
                }),
            ) => assert_eq!(*done, completion(name)),
            // Killed before the commit, or before the claim: it may be run again.
            (0, None | Some(State::Running { armed: false, .. })) => none += 1,
            _ => panic!("{name}: {effects} effects, and {state:?}"),
        }
        if paid.iter().any(|paid| paid == name) {
            assert_eq!(effects, 1, "{name} was acknowledged");
        }
    }
    println!("{} were paid, {none} were cut off", paid.len());
}

// promise: ID-12
#[tokio::test]
async fn an_armed_claim_of_a_killed_process_is_unknown_when_its_lease_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let child = child("child_that_claims", folder.path());
    let claimed = kill_after(child, 50);
    let store = SqliteStore::open(folder.path().join("x.db")).unwrap();
    let (store, time) = support::Time::of(store);
    // The clock goes on from the last moment that the other process has seen.
    let asked = store.step(&key("other"), claim(Token::random())).await;
    assert!(matches!(asked, Ok(Answer::Won { .. })), "{asked:?}");
    time.pass(support::LEASE + Duration::from_secs(1));
    for name in claimed {
        let late = store.step(&key(name), claim(Token::random())).await;
        assert_eq!(late.unwrap(), Answer::Unknown);
    }
}
