//! Who is known.

use domain::Channel;
use providers::{channel_kind, channel_kinds, source_kind, source_kinds};
use std::collections::HashSet;

#[test]
fn every_kind_of_source_is_found_by_its_name_and_no_other() {
    for kind in source_kinds() {
        assert_eq!(source_kind(kind.kind()).unwrap().kind(), kind.kind());
    }
    assert!(source_kind("Meta").is_none() && source_kind("").is_none());
    assert_eq!(source_kinds().iter().map(|kind| kind.kind()).collect::<HashSet<_>>().len(), source_kinds().len());
}

#[test]
fn every_channel_that_sends_is_found_and_notes_never_leave_the_house() {
    for kind in channel_kinds() {
        assert_eq!(channel_kind(kind.channel()).unwrap().channel(), kind.channel());
    }
    assert!(channel_kind(Channel::InternalNote).is_none());
}

#[test]
fn kept_headers_are_named_as_http_compares_them() {
    let names = source_kinds().iter().flat_map(|kind| kind.kept_headers());
    for name in names {
        assert_eq!(*name, name.to_ascii_lowercase());
    }
}
