//! What is shown to be pasted is run: the client and the server of the README here, all other blocks by rustdoc.

mod sources;

use std::{
    env,
    future::IntoFuture,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
};

use axum::{Router, http::StatusCode, routing::post};
use tokio::net::TcpListener;

mod client {
    include!(concat!(env!("OUT_DIR"), "/block_1.rs"));

    /// What the server answers to an order with this key.
    pub(crate) async fn status(url: &str, key: &str, order: &'static str) -> u16 {
        let answer = pay(client(), url, key, Bytes::from(order)).await;
        answer.unwrap().as_u16()
    }

    /// What it answers to an order that has no key before it comes to the client.
    pub(crate) async fn status_without_key(url: &str) -> u16 {
        let order = Request::post(url).header("content-type", "application/json");
        let order = order.body(Full::from("8 figs")).unwrap();
        client().oneshot(order).await.unwrap().status().as_u16()
    }
}

mod server {
    include!(concat!(env!("OUT_DIR"), "/block_2.rs"));

    /// The server, below a layer that takes everybody for this account.
    pub(crate) fn of(account: &str) -> Router {
        let account = Account(account.into());
        app().unwrap().layer(axum::Extension(account))
    }
}

/// Serves on a free port, and returns where payments are made.
async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/payments", listener.local_addr().unwrap());
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(axum::serve(listener, app).into_future());
    url
}

// promise: ST-11
#[tokio::test]
async fn the_client_of_the_readme_pays_once_at_its_server() {
    // The server has its file where it is started.
    let folder = tempfile::tempdir().unwrap();
    env::set_current_dir(&folder).unwrap();
    let alice = serve(server::of("alice")).await;
    assert_eq!(client::status(&alice, "order-1", "3 apples").await, 200);
    assert_eq!(client::status(&alice, "order-1", "3 apples").await, 200);
    assert_eq!(client::status(&alice, "order-1", "5 pears").await, 422);
    assert_eq!(client::status_without_key(&alice).await, 200);

    let send = |url: &str, key: Option<&str>| {
        let request = reqwest::Client::new().post(url).body("3 apples");
        let request = request.header("content-type", "application/json");
        match key {
            Some(key) => request.header("idempotency-key", key).send(),
            None => request.send(),
        }
    };
    let replay = send(&alice, Some("\"order-1\"")).await.unwrap();
    assert_eq!(replay.headers()["idempotency-replayed"], "true");
    assert_eq!(replay.text().await.unwrap(), "paid for 3 apples");
    assert_eq!(send(&alice, None).await.unwrap().status(), 400);

    // Another's key is another key, in the same file.
    let bob = serve(server::of("bob")).await;
    let first = send(&bob, Some("\"order-1\"")).await.unwrap();
    assert_eq!(first.status(), 200);
    assert!(!first.headers().contains_key("idempotency-replayed"));
    assert!(first.headers().contains_key("ratelimit"));
    assert!(folder.path().join("payments.db").exists());
}

// promise: ST-11
#[tokio::test]
async fn the_client_of_the_readme_asks_a_server_again_that_is_busy() {
    static BUSY: AtomicBool = AtomicBool::new(true);
    let busy_once = async || {
        if BUSY.swap(false, Ordering::SeqCst) {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::CREATED
        }
    };
    let url = serve(Router::new().route("/payments", post(busy_once))).await;
    assert_eq!(client::status(&url, "order-2", "3 apples").await, 201);
}

/// What begins a block of code that rustdoc neither compiles nor runs, as it is no Rust.
const NO_RUST: [&str; 5] = ["console", "sh", "sql", "text", "toml"];

/// What is wrong with the blocks in a text: what begins each of them, if it is not Rust that is run.
fn not_run(text: &str) -> Vec<&str> {
    let lines = text.lines().map(|line| {
        let line = line.trim_start();
        let doc = line.strip_prefix("//!").or(line.strip_prefix("///"));
        doc.unwrap_or(line).trim_start()
    });
    let fences = lines.filter_map(|line| line.strip_prefix("```"));
    // Every other one is the end of a block.
    let begins = fences.step_by(2);
    begins
        .filter(|begin| !matches!(*begin, "" | "rust") && !NO_RUST.contains(begin))
        .collect()
}

// promise: ST-11
#[test]
fn every_block_of_rust_in_the_docs_is_run() {
    let readme = include_str!("../README.md");
    let programs = readme.matches("```rust\n").count();
    assert_eq!(programs, 2, "they are not all run here");
    assert_eq!(not_run(readme), [""; 0]);

    let mut blocks = 0;
    for (path, text) in sources::read("crates", &[".rs", ".md"]) {
        assert_eq!(not_run(&text), [""; 0], "{path}");
        blocks += text.matches("```").count() / 2;
        // A function that nobody calls is compiled and not run.
        let line = "#![doc(test(attr(deny(dead_code))))]";
        let has = !path.ends_with("src/lib.rs") || text.contains(line);
        assert!(has, "{path} has not {line}");
    }
    assert!(blocks > 40, "{blocks}");

    let guides = include_str!("../crates/buttress/src/guides.rs");
    for (path, _) in sources::read("crates/buttress/src/guides", &[".md"]) {
        let (_, file) = path.split_once("src/").unwrap();
        let included = guides.contains(&format!("include_str!(\"{file}\")"));
        assert!(included, "{path} is no guide");
    }
}

#[test]
fn a_block_that_is_not_run_is_seen() {
    let text = "//! ```\n//! ```\n/// ```no_run\n/// ```\n```rust\n```\n```toml\n```\n    ```ignore\n    ```";
    assert_eq!(not_run(text), ["no_run", "ignore"]);
}
