//! The operators' port over a real socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use penstock_router::Ops;
use penstock_router::ops::Sources;

use crate::support::{Client, Front, Traits};

#[tokio::test]
async fn the_ports_answers_follow_the_router() {
    let mut front = Front::start(|_| {}).await;
    let (status, registry) = (front.router.status(), front.registry.clone());
    let sources = Sources {
        metrics: Arc::new(move || penstock_router::render(std::slice::from_ref(&registry))),
        readiness: Arc::new(move || status.readiness()),
    };
    let ops = Ops::start(SocketAddr::from(([127, 0, 0, 1], 0)), sources).await.unwrap();
    let mut client = Client::connect(ops.address()).await;
    let before = client.ask(Method::GET, "/readyz", &[], "").await;
    assert_eq!(before.status, 503);
    assert_eq!(before.json().await["reasons"][0], "no model is served yet");
    assert_eq!(client.ask(Method::GET, "/healthz", &[], "").await.status, 200);

    let _worker = front.join("w1", Traits::default()).await;
    front.router.status().ready().await;
    assert_eq!(client.ask(Method::GET, "/readyz", &[], "").await.status, 200);
    let metrics = client.ask(Method::GET, "/metrics", &[], "").await;
    assert!(metrics.header("content-type").starts_with("text/plain; version=0.0.4"));
    assert!(metrics.text().await.contains("penstock_members{state=\"ready\"} 1"));
    ops.drain(Duration::from_secs(5)).await;
    assert!(client.try_ask(Method::GET, "/healthz", &[], "").await.is_err());
}
