//! `cargo test -p providers --release -- --ignored speed --nocapture`

use crate::support::{fixture, parse};
use std::hint::black_box;
use std::time::Instant;

#[test]
#[ignore = "measures: only a release build on a quiet machine says anything"]
fn speed_of_one_text_webhook() {
    // A kilobyte, as most webhooks are: the sample with a longer text.
    let filler = "words and words ".repeat(28);
    let body = fixture!("inbound_text").replace("Is the shop open?", &filler);
    let mut best = f64::MAX;
    for _ in 0..20 {
        let rounds = 5_000;
        let start = Instant::now();
        for _ in 0..rounds {
            black_box(parse(black_box(&body)).unwrap());
        }
        best = best.min(start.elapsed().as_secs_f64() / f64::from(rounds) * 1e6);
    }
    println!("{} bytes: {best:.2} µs", body.len());
    assert!(best < 5.0, "{best:.2} µs");
}
