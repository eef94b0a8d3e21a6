//! Customers who write by themselves.

use crate::SOON;
use crate::receiver::{Got, wired};
use simulator::LoadPlan;
use std::collections::{BTreeMap, BTreeSet};

#[tokio::test]
async fn a_load_posts_everything_it_reports_with_its_shares_of_trouble() {
    let (simulator, receiver) = wired(&[503, 200, 503]).await;
    let plan = LoadPlan {
        per_second: 400.0,
        messages: Some(300),
        duplicates: 0.2,
        batched: 0.3,
        reordered: 0.2,
        forged: 0.1,
        odd: 0.2,
        ..LoadPlan::default()
    };
    let report = simulator.start_load(plan).finished().await;
    assert!(simulator.settled(SOON).await);
    assert_eq!(report.sent.len(), 300);
    for count in [report.duplicates, report.batches, report.reordered, report.forged, report.odd] {
        assert!(count >= 5, "{report:?}");
    }

    let written: BTreeSet<&str> = report.sent.iter().map(|sent| sent.wamid.as_str()).collect();
    assert_eq!(written.len(), 300);
    let acknowledged = simulator.acknowledged();
    let told: BTreeSet<&str> = acknowledged.iter().map(|one| one.item.id.as_str()).collect();
    assert_eq!(told, written);

    let mut arrived: BTreeMap<String, u64> = BTreeMap::new();
    for message in receiver.got().iter().flat_map(Got::messages) {
        *arrived.entry(message["id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert!(arrived.values().any(|times| *times > 1), "duplicates arrive");
    let stats = simulator.stats().webhooks;
    assert_eq!((stats.forged_refused, stats.forged_accepted), (report.forged, 0));
}

#[tokio::test]
async fn a_load_without_an_end_stops_when_told() {
    let (simulator, _receiver) = wired(&[]).await;
    let load = simulator.start_load(LoadPlan { per_second: 200.0, ..LoadPlan::default() });
    assert!(simulator.wait_until(SOON, |stats| stats.webhooks.acknowledged >= 20).await);
    let report = load.stop().await;
    assert!(simulator.settled(SOON).await);
    let posted = simulator.stats().webhooks.posted;
    assert!(report.sent.len() >= 20);
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(simulator.stats().webhooks.posted, posted);
}
