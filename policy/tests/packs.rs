//! The packs as shipped.

use policy::{Method, Pack, Rules};

#[test]
fn each_pack_has_as_many_routes_as_its_release() {
    let counts: Vec<(&str, usize)> = Pack::all()
        .iter()
        .map(|pack| (pack.name(), pack.routes().expect("no mistakes").len()))
        .collect();

    assert_eq!(
        counts,
        [
            ("paperclip-2026.707", 56),
            ("paperclip-2026.722", 59),
            ("paperclip-2026.817", 61),
            ("paperclip-2026.824", 67),
            ("paperclip-2026.831", 67),
            ("paperclip-2026.916", 76),
        ]
    );
    assert_eq!(Rules::from_pack(Pack::newest()).len(), 76);
}

#[test]
fn no_release_took_a_route_away() {
    for pair in Pack::all().windows(2) {
        let [older, newer] = pair else {
            unreachable!("windows of two")
        };
        let newer_routes = newer.routes().expect("no mistakes");
        for route in older.routes().expect("no mistakes") {
            assert!(
                newer_routes.contains(&route),
                "{} lost {} {}",
                newer.name(),
                route.method,
                route.template
            );
        }
    }
}

#[test]
fn the_newest_pack_is_the_last_and_is_found_by_name() {
    assert_eq!(Pack::all().last(), Some(&Pack::newest()));
    assert_eq!(Pack::named("paperclip-2026.916"), Some(Pack::newest()));
    assert_eq!(Pack::named("paperclip-2026.1"), None);
    assert_eq!(Pack::named("none"), None);
}

#[test]
fn only_the_attachment_upload_takes_multipart() {
    let routes = Pack::newest().routes().expect("no mistakes");

    let multipart: Vec<&str> = routes
        .iter()
        .filter(|route| route.multipart)
        .map(|route| route.template.as_str())
        .collect();

    assert_eq!(multipart, ["/api/companies/{company}/issues/{issue}/attachments"]);
}

#[test]
fn no_pack_names_a_method_that_only_asks_about_a_route() {
    for route in Pack::newest().routes().expect("no mistakes") {
        assert!(
            !matches!(route.method, Method::Head | Method::Options),
            "{}",
            route.template
        );
    }
}
