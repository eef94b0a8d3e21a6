//! Only whoever knows the app secret gets past ingress.

use crate::support::{NOW, source};
use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;
use providers::{Forged, Webhook, meta, source_kind};
use rstest::rstest;

const SECRET: &str = "example-app-secret";
const BODY: &[u8] = br#"{"object":"page","entry":[]}"#;
const GENUINE: &str = "sha256=ad8be1d70c23fcbf13161e2bdec3804c9dc74496ff7ef30b79d9ac1c3a791649";

fn headers(values: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in values {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

fn verify(values: &[(&'static str, &str)], body: &[u8], secrets: &[&str]) -> Result<(), Forged> {
    let headers = headers(values);
    let hook = Webhook { headers: &headers, body, received_at: NOW };
    source_kind("meta").unwrap().verify(&hook, &source(secrets, None))
}

fn signed(value: &str) -> Result<(), Forged> {
    verify(&[("x-hub-signature-256", value)], BODY, &[SECRET])
}

#[test]
fn the_published_vector_is_made_and_accepted() {
    assert_eq!(meta::sign(SECRET, BODY), GENUINE);
    assert_eq!(signed(GENUINE), Ok(()));
}

#[rstest]
#[case::empty("", Forged::MissingSignature)]
#[case::without_prefix("ad8be1d70c23fcbf13161e2bdec3804c9dc74496ff7ef30b79d9ac1c3a791649", Forged::MalformedSignature)]
#[case::another_algorithm("sha1=3f786850e387550fdab836ed7e6dc881de23001b", Forged::MalformedSignature)]
#[case::algorithm_in_capitals(
    "SHA256=ad8be1d70c23fcbf13161e2bdec3804c9dc74496ff7ef30b79d9ac1c3a791649",
    Forged::MalformedSignature
)]
#[case::digits_in_capitals(
    "sha256=AD8BE1D70C23FCBF13161E2BDEC3804C9DC74496FF7EF30B79D9AC1C3A791649",
    Forged::MalformedSignature
)]
#[case::prefix_only("sha256=", Forged::MalformedSignature)]
#[case::too_short("sha256=ad8be1d70c23fcbf13161e2bdec3804c9dc74496ff7ef30b79d9ac1c3a7916", Forged::MalformedSignature)]
#[case::too_long(
    "sha256=ad8be1d70c23fcbf13161e2bdec3804c9dc74496ff7ef30b79d9ac1c3a79164900",
    Forged::MalformedSignature
)]
#[case::not_hex("sha256=zd8be1d70c23fcbf13161e2bdec3804c9dc74496ff7ef30b79d9ac1c3a791649", Forged::MalformedSignature)]
#[case::blank_inside(
    "sha256= ad8be1d70c23fcbf13161e2bdec3804c9dc74496ff7ef30b79d9ac1c3a79164",
    Forged::MalformedSignature
)]
#[case::blank_behind(
    "sha256=ad8be1d70c23fcbf13161e2bdec3804c9dc74496ff7ef30b79d9ac1c3a791649 ",
    Forged::MalformedSignature
)]
#[case::two_in_one(
    "sha256=ad8be1d70c23fcbf13161e2bdec3804c9dc74496ff7ef30b79d9ac1c3a791649,sha256=00",
    Forged::MalformedSignature
)]
#[case::one_digit_off("sha256=ad8be1d70c23fcbf13161e2bdec3804c9dc74496ff7ef30b79d9ac1c3a791648", Forged::BadSignature)]
#[case::zeros("sha256=0000000000000000000000000000000000000000000000000000000000000000", Forged::BadSignature)]
fn forged_headers_are_refused(#[case] value: &str, #[case] want: Forged) {
    assert_eq!(signed(value), Err(want));
}

#[test]
fn no_header_is_no_signature() {
    assert_eq!(verify(&[], BODY, &[SECRET]), Err(Forged::MissingSignature));
}

#[test]
fn the_old_sha1_header_counts_for_nothing() {
    let values = [("x-hub-signature", "sha1=3f786850e387550fdab836ed7e6dc881de23001b")];
    assert_eq!(verify(&values, BODY, &[SECRET]), Err(Forged::MissingSignature));
}

#[test]
fn a_second_header_makes_both_worthless() {
    let values = [("x-hub-signature-256", GENUINE), ("x-hub-signature-256", GENUINE)];
    assert_eq!(verify(&values, BODY, &[SECRET]), Err(Forged::MalformedSignature));
}

#[test]
fn another_apps_secret_is_refused() {
    assert_eq!(signed(&meta::sign("another-app-secret", BODY)), Err(Forged::BadSignature));
}

#[test]
fn a_body_written_anew_is_refused() {
    let arrived = br#"{"text":"\u00e4 \/"}"#;
    let rewritten = "{\"text\":\"ä /\"}".as_bytes();
    let signature = meta::sign(SECRET, arrived);
    assert_eq!(verify(&[("x-hub-signature-256", &signature)], arrived, &[SECRET]), Ok(()));
    assert_eq!(verify(&[("x-hub-signature-256", &signature)], rewritten, &[SECRET]), Err(Forged::BadSignature));
}

#[test]
fn without_a_secret_nothing_is_genuine() {
    let unkeyed = meta::sign("", BODY);
    assert_eq!(verify(&[("x-hub-signature-256", &unkeyed)], BODY, &[]), Err(Forged::BadSignature));
    assert_eq!(verify(&[("x-hub-signature-256", &unkeyed)], BODY, &[""]), Err(Forged::BadSignature));
}

#[rstest]
#[case::old_before_the_new(&["older-app-secret", SECRET])]
#[case::new_before_the_old(&[SECRET, "newer-app-secret"])]
fn each_secret_is_good_during_rotation(#[case] secrets: &[&str]) {
    assert_eq!(verify(&[("x-hub-signature-256", GENUINE)], BODY, secrets), Ok(()));
}

#[rstest]
#[case(Forged::MissingSignature, "missing_signature")]
#[case(Forged::MalformedSignature, "malformed_signature")]
#[case(Forged::BadSignature, "bad_signature")]
fn refusals_are_counted_under_a_code(#[case] forged: Forged, #[case] code: &str) {
    assert_eq!(forged.reason(), code);
}

proptest! {
    #[test]
    fn what_is_signed_verifies_and_no_changed_byte_does(body in prop::collection::vec(any::<u8>(), 1..400), at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let signature = meta::sign(SECRET, &body);
        let values = [("x-hub-signature-256", signature.as_str())];
        prop_assert_eq!(verify(&values, &body, &[SECRET]), Ok(()));
        let mut changed = body.clone();
        changed[at.index(body.len())] ^= 1 << bit;
        prop_assert_eq!(verify(&values, &changed, &[SECRET]), Err(Forged::BadSignature));
    }

    #[test]
    fn no_header_value_is_a_panic(value in prop::collection::vec(any::<u8>(), 0..100)) {
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            let mut headers = HeaderMap::new();
            headers.insert("x-hub-signature-256", value);
            let hook = Webhook { headers: &headers, body: BODY, received_at: NOW };
            prop_assert!(source_kind("meta").unwrap().verify(&hook, &source(&[SECRET], None)).is_err());
        }
    }
}
