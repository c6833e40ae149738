//! Metrics by OTLP: the numbers of `/metrics`, and a collector that is not there disturbs nobody.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{Metric, NumberDataPoint};
use paperclip_bridge_tests::serving::{Serving, agent};
use paperclip_bridge_tests::{Upstream, eventually};
use prost::Message as _;
use tokio::net::TcpListener;

use super::SOON;
use super::configured::scrape;

async fn exporting(collector: &str) -> Serving {
    Serving::builder()
        .env("OTEL_METRICS_EXPORTER", "otlp")
        .env("OTEL_TRACES_EXPORTER", "none")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-key=collector%2Dkey")
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=tests")
        .env("OTEL_METRIC_EXPORT_INTERVAL", "100")
        .start()
        .await
}

/// What the collector was sent last.
fn newest(collector: &Upstream) -> Option<Vec<Metric>> {
    let seen = collector.seen().into_iter().rfind(|seen| seen.whole)?;
    assert_eq!(
        (seen.method.as_str(), seen.target.as_str()),
        ("POST", "/v1/metrics")
    );
    assert_eq!(seen.header("x-key"), Some("collector-key"));
    assert_eq!(seen.header("content-type"), Some("application/x-protobuf"));
    let sent = ExportMetricsServiceRequest::decode(seen.body.as_slice()).expect("it is OTLP");
    let of_resource = sent.resource_metrics.into_iter().next()?;
    let told = format!("{:?}", of_resource.resource);
    assert!(
        told.contains("paperclip-bridge") && told.contains("deployment.environment.name"),
        "{told}"
    );
    Some(of_resource.scope_metrics.into_iter().next()?.metrics)
}

/// The points of one metric with these labels.
fn points(metrics: &[Metric], name: &str) -> Vec<NumberDataPoint> {
    let found = metrics.iter().find(|metric| metric.name == name);
    match found.and_then(|metric| metric.data.clone()) {
        Some(Data::Sum(sum)) => sum.data_points,
        Some(Data::Gauge(gauge)) => gauge.data_points,
        other => panic!("{name}: {other:?}"),
    }
}

#[tokio::test]
async fn a_collector_is_sent_the_numbers_of_a_scrape_again_and_again_and_at_the_end() {
    let (upstream, collector) = (Upstream::start().await, Upstream::start().await);
    let serving = exporting(&collector.url()).await;
    let opened = serving.session(&upstream, &[]).await;
    for path in ["/api/agents/me", "/api/agents/me", "/api/none/such"] {
        agent(&opened).get(path).await.unwrap();
    }
    let line =
        r#"paperclip_bridge_callbacks_total{tunnel="local",class="read",verdict="allow",status="2xx"} 2"#;
    let scraped = scrape(&serving).await.text();
    assert!(scraped.lines().any(|found| found == line), "{scraped}");

    let metrics = eventually(SOON, "the collector hears of all three", || {
        let metrics = newest(&collector)?;
        let counted = metrics.iter().any(|metric| {
            let Some(Data::Sum(sum)) = &metric.data else {
                return false;
            };
            metric.name == "paperclip_bridge_callbacks" && sum.data_points.len() == 2
        });
        counted.then_some(metrics)
    })
    .await;

    let callbacks = points(&metrics, "paperclip_bridge_callbacks");
    let count = |verdict: &str| {
        let of_it =
            |point: &&NumberDataPoint| format!("{:?}", point.attributes).contains(&format!("\"{verdict}\""));
        callbacks.iter().find(of_it).and_then(|point| point.value)
    };
    assert_eq!(
        (count("allow"), count("deny")),
        (Some(Number::AsInt(2)), Some(Number::AsInt(1)))
    );
    let ready = points(&metrics, "paperclip_bridge_sessions");
    assert!(ready.iter().any(|point| point.value == Some(Number::AsInt(1))));
    // Every family of a scrape that has a number, and no other.
    let families = scraped.lines().filter(|line| line.starts_with("# TYPE ")).count();
    assert!(
        metrics.len() <= families && metrics.len() + 4 > families,
        "{} of {families}",
        metrics.len()
    );
    let before = collector.seen().len();
    serving.running.signal("TERM");
    assert_eq!(serving.running.finish().await.code, Some(0));
    assert!(collector.seen().len() > before);
}

#[tokio::test]
async fn a_collector_of_metrics_that_is_not_there_or_does_not_answer_disturbs_nothing() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = gone.local_addr().unwrap();
    // Takes connections and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for collector in [gone, mute.local_addr().unwrap()] {
        let upstream = Upstream::start().await;
        let serving = exporting(&format!("http://{collector}")).await;
        let opened = serving.session(&upstream, &[]).await;

        for _ in 0..20 {
            assert_eq!(agent(&opened).get("/api/agents/me").await.unwrap().status, 200);
        }

        serving.ask(&["drain", "--wait"]).await;
        let ended = serving.running.finish().await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let complained = ended.stderr.matches("cannot be sent to its collector").count();
        assert!(complained <= 1, "{}", ended.stderr);
    }
}

#[tokio::test]
async fn a_collector_for_everything_is_sent_no_metrics_until_their_exporter_is_named() {
    let (upstream, collector) = (Upstream::start().await, Upstream::start().await);
    let serving = Serving::builder()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url())
        .env("OTEL_METRIC_EXPORT_INTERVAL", "10")
        .start()
        .await;
    let opened = serving.session(&upstream, &[]).await;
    assert_eq!(agent(&opened).get("/api/agents/me").await.unwrap().status, 200);

    serving.running.signal("TERM");
    assert_eq!(serving.running.finish().await.code, Some(0));

    let seen = collector.seen();
    assert!(!seen.is_empty() && seen.iter().all(|seen| seen.target == "/v1/traces"));
}

#[tokio::test]
async fn metrics_that_are_off_and_asked_for_by_otlp_are_a_contradiction() {
    let ended = Serving::builder()
        .env("PCBRIDGE_TELEMETRY__METRICS", "false")
        .env("OTEL_METRICS_EXPORTER", "otlp")
        .command()
        .finish()
        .await;

    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("telemetry.metrics") && ended.stderr.contains("OTEL_METRICS_EXPORTER"),
        "{}",
        ended.stderr
    );
}
