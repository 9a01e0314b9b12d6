//! What happens to requests when etcd is away: nothing.

use std::time::Duration;

use crate::cluster::Cluster;

#[tokio::test]
async fn an_etcd_that_is_killed_and_comes_again_fails_no_request() {
    let cluster = Cluster::start();
    let routers = [cluster.router("r1", &[]), cluster.router("r2", &[])];
    let _worker = cluster.worker("w1", &[]);
    for router in &routers {
        cluster.members(router, "ready", 1).await;
    }
    let mut second = None;
    let event = async {
        cluster.restart_etcd();
        // Whoever joins after it is seen by routers that were there before it.
        second = Some(cluster.worker("w2", &[]));
        for router in &routers {
            cluster.members(router, "ready", 2).await;
        }
    };
    cluster.under_load(&[&routers[0], &routers[1]], event).await;
}

#[tokio::test]
async fn an_etcd_that_stops_for_longer_than_a_lease_fails_no_request() {
    let cluster = Cluster::start();
    let routers = [cluster.router("r1", &[]), cluster.router("r2", &[])];
    let workers = [cluster.worker("w1", &[]), cluster.worker("w2", &[])];
    for router in &routers {
        cluster.members(router, "ready", 2).await;
    }
    let event = async {
        cluster.signal_etcd("STOP");
        // Leases are of 10 s: etcd ends them as it wakes.
        tokio::time::sleep(Duration::from_secs(30)).await;
        cluster.signal_etcd("CONT");
        for worker in &workers {
            worker.logs(&["joining again"]).await;
        }
        for router in &routers {
            router.logs(&["keeping those known"]).await;
            cluster.members(router, "ready", 2).await;
        }
    };
    let answered = cluster.under_load(&[&routers[0], &routers[1]], event).await;
    assert!(answered > 100, "{answered}");
}

#[tokio::test]
async fn a_compaction_that_routers_slept_through_fails_no_request() {
    let cluster = Cluster::start();
    let routers = [cluster.router("r1", &[]), cluster.router("r2", &[])];
    let mut first = cluster.worker("w1", &[]);
    let _second = cluster.worker("w2", &[]);
    for router in &routers {
        cluster.members(router, "ready", 2).await;
    }
    let (mut third, mut fourth) = (None, None);
    let event = async {
        // Their watches break while they sleep, and what they missed is forgotten when they wake.
        routers.iter().for_each(|router| router.signal("STOP"));
        cluster.restart_etcd();
        third = Some(cluster.worker("w3", &[]));
        cluster.compact_etcd().await;
        routers.iter().for_each(|router| router.signal("CONT"));
        for router in &routers {
            router.logs(&["cannot follow the members", "was compacted"]).await;
            cluster.members(router, "ready", 3).await;
        }
        // One that nobody slept through, between a leave and a join.
        first.signal("TERM");
        for router in &routers {
            cluster.members(router, "ready", 2).await;
        }
        cluster.compact_etcd().await;
        fourth = Some(cluster.worker("w4", &[]));
        for router in &routers {
            cluster.members(router, "ready", 3).await;
        }
    };
    cluster.under_load(&[&routers[0], &routers[1]], event).await;
    assert_eq!(first.wait().code(), Some(0), "{}", first.log());
}
