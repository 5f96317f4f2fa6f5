//! How to do what most people come for: a page for each, with a program that runs as it stands.
//!
//! | page | for whoever |
//! |---|---|
//! | [`order`] | stacks several layers |
//! | [`retrying`] | has calls that fail now and then |
//! | [`breaking`] | wonders whether a breaker would help |
//! | [`limits`] | serves many customers, one of whom asks too often |
//! | [`payments`] | has a POST that must be done once |
//! | [`adding`] | has a program with axum, tonic, reqwest or hyper already |
//! | [`moving`] | comes from tower's own layers, tower-resilience, `tower_governor` or reqwest-retry |
//!
//! Each program starts what it talks to by itself, on a free port of this machine, and ends when it has shown what it shows.
//! Of these dependencies it needs those that it names, and tokio:
//!
//! ```toml
//! [dependencies]
//! axum = "0.8"
//! buttress = { version = "0.1", features = ["full"] }
//! bytes = "1"
//! http = "1"
//! http-body = "1"
//! http-body-util = "0.1"
//! hyper-util = { version = "0.1", features = ["client-legacy", "server-auto", "service", "tokio"] }
//! reqwest = { version = "0.13", default-features = false }
//! tempfile = "3"
//! tokio = { version = "1", features = ["macros", "net", "rt"] }
//! tonic = "0.14"
//! tonic-health = "0.14"
//! tower = { version = "0.5", features = ["filter", "util"] }
//! ```
//!
//! These pages are only there with the feature `full`, since their programs use every layer.

#[doc = include_str!("guides/adding.md")]
pub mod adding {}
#[doc = include_str!("guides/breaking.md")]
pub mod breaking {}
#[doc = include_str!("guides/limits.md")]
pub mod limits {}
#[doc = include_str!("guides/moving.md")]
pub mod moving {}
#[doc = include_str!("guides/order.md")]
pub mod order {}
#[doc = include_str!("guides/payments.md")]
pub mod payments {}
#[doc = include_str!("guides/retrying.md")]
pub mod retrying {}
