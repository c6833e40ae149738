//! The ways into a queue directory, each against the same directory and the same hostile names.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test says what went wrong by failing"
)]

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use runners::local::{BaseEnvironment, LocalRunner};
use tunnel::queue::batch::Batch;
use tunnel::queue::channel::{ChannelFault, OpenQueue, Order, QueueAccess, QueueChannel};
use tunnel::queue::directory::Directory;
use tunnel::queue::listing::{FileId, Found};
use tunnel::queue::pump::Pump;

const LIMIT: usize = 20 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(30);

struct World {
    folder: tempfile::TempDir,
    queue: PathBuf,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let queue = folder.path().join("q it's");
        Self { folder, queue }
    }

    fn access(&self, shell: &str) -> QueueAccess {
        QueueAccess {
            runner: Arc::new(LocalRunner::new(BaseEnvironment::default(), None)),
            shell: shell.to_owned(),
            directory: self.queue.to_str().unwrap().to_owned(),
            record: String::new(),
            fence: None,
            limit_bytes: LIMIT,
            executions: Arc::default(),
        }
    }

    fn pump(&self, shell: &str) -> Box<dyn QueueChannel> {
        Box::new(Pump::new(self.access(shell)))
    }

    fn batch(&self, shell: &str, executions: Arc<AtomicU64>) -> Box<dyn QueueChannel> {
        Box::new(Batch::new(QueueAccess {
            executions,
            ..self.access(shell)
        }))
    }

    /// Every kind of channel, with every shell that is here.
    fn channels(&self) -> Vec<(String, Box<dyn QueueChannel>)> {
        let mut channels: Vec<(String, Box<dyn QueueChannel>)> = vec![(
            "directory".to_owned(),
            Box::new(Directory::new(&self.queue, LIMIT)),
        )];
        for shell in self.shells() {
            channels.push((format!("pump {shell}"), self.pump(&shell)));
            channels.push((format!("batch {shell}"), self.batch(&shell, Arc::default())));
        }
        channels
    }

    /// Those that a host with this fence has, with every shell that is here.
    fn fenced(&self, fence: u64) -> Vec<(String, Box<dyn QueueChannel>)> {
        let mut channels: Vec<(String, Box<dyn QueueChannel>)> = Vec::new();
        for shell in self.shells() {
            let access = QueueAccess {
                fence: Some(fence),
                ..self.access(&shell)
            };
            channels.push((format!("pump {shell}"), Box::new(Pump::new(access.clone()))));
            channels.push((format!("batch {shell}"), Box::new(Batch::new(access))));
        }
        channels
    }

    fn fence(&self) -> String {
        std::fs::read_to_string(self.queue.join("fence")).unwrap_or_default()
    }

    fn shells(&self) -> Vec<String> {
        let mut shells = vec!["sh".to_owned(), "bash".to_owned()];
        if Path::new("/bin/busybox").exists() || Path::new("/usr/bin/busybox").exists() {
            let path = self.folder.path().join("busybox-sh");
            // Its own `head`, `base64` and `wc`, too.
            let applets = self.folder.path().join("applets");
            if !applets.exists() {
                std::fs::create_dir(&applets).unwrap();
                for applet in [
                    "mkdir", "cat", "mv", "rm", "base64", "head", "wc", "sleep", "kill", "date",
                ] {
                    let busybox = if Path::new("/bin/busybox").exists() {
                        "/bin/busybox"
                    } else {
                        "/usr/bin/busybox"
                    };
                    symlink(busybox, applets.join(applet)).unwrap();
                }
                std::fs::write(
                    &path,
                    format!(
                        "#!/bin/sh\nexport PATH={}\nexec /bin/busybox sh \"$@\"\n",
                        applets.display()
                    ),
                )
                .unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            }
            shells.push(path.to_str().unwrap().to_owned());
        } else {
            eprintln!("skipped in part: there is no busybox on this machine");
        }
        shells
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        let part = self.queue.join("requests").join("part");
        std::fs::write(&part, bytes).unwrap();
        std::fs::rename(part, self.queue.join("requests").join(name)).unwrap();
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.queue.join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn id(name: &str) -> FileId {
    FileId::of_file(&format!("{name}.json")).unwrap()
}

/// The next thing found that is not a mere sign of life.
async fn next(queue: &mut OpenQueue) -> Found {
    loop {
        let found = tokio::time::timeout(PATIENCE, queue.found.recv())
            .await
            .expect("in time")
            .expect("a channel")
            .expect("no fault");
        if found != Found::Beat {
            return found;
        }
    }
}

async fn answer(queue: &mut OpenQueue, name: &str, answer: impl Into<Bytes>) -> Found {
    let order = Order::Write {
        id: id(name),
        answer: answer.into(),
    };
    queue.orders.send(order).await.unwrap();
    next(queue).await
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_request_is_claimed_read_answered_and_removed_by_every_channel() {
    let world = World::new();
    for (name, channel) in world.channels() {
        let mut queue = channel.open().await.unwrap();
        assert!(queue.clock.is_some(), "{name}");
        world.put("a.json", b"hello");

        let found = next(&mut queue).await;
        assert_eq!(
            found,
            Found::Request {
                id: id("a"),
                bytes: Bytes::from_static(b"hello")
            },
            "{name}"
        );
        assert_eq!(world.names("requests"), [""; 0], "{name}");
        assert_eq!(world.names("claimed"), ["a.json"], "{name}");

        assert_eq!(
            answer(&mut queue, "a", "{\"x\":1}\n").await,
            Found::Written { id: id("a") }
        );
        let path = world.queue.join("responses/a.json");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"x\":1}\n", "{name}");
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        eventually("the claimed file is gone", || world.names("claimed").is_empty()).await;
        queue
            .orders
            .send(Order::Forget { ids: vec![id("a")] })
            .await
            .unwrap();
        eventually("the response is removed", || world.names("responses").is_empty()).await;
        drop(queue.orders);
        while queue.found.recv().await.is_some() {}
    }
}

#[tokio::test]
async fn a_body_of_ten_mebibytes_passes_both_ways_through_every_channel() {
    let world = World::new();
    let body: Vec<u8> = (0..10 * 1024 * 1024_u32).map(|n| (n % 251) as u8).collect();
    for (name, channel) in world.channels() {
        let mut queue = channel.open().await.unwrap();
        world.put("big.json", &body);

        let Found::Request { bytes, .. } = next(&mut queue).await else {
            panic!("{name}: no request")
        };
        assert!(bytes == body, "{name}");
        assert_eq!(
            answer(&mut queue, "big", body.clone()).await,
            Found::Written { id: id("big") }
        );
        assert!(
            std::fs::read(world.queue.join("responses/big.json")).unwrap() == body,
            "{name}"
        );
        std::fs::remove_file(world.queue.join("responses/big.json")).unwrap();
        // The next order is still understood.
        world.put("b.json", b"x");
        next(&mut queue).await;
        assert_eq!(answer(&mut queue, "b", "y").await, Found::Written { id: id("b") });
        std::fs::remove_file(world.queue.join("responses/b.json")).unwrap();
        drop(queue.orders);
        while queue.found.recv().await.is_some() {}
    }
}

#[tokio::test]
async fn hostile_names_and_kinds_of_file_are_left_where_they_are() {
    let world = World::new();
    for (name, channel) in world.channels() {
        let mut queue = channel.open().await.unwrap();
        let requests = world.queue.join("requests");
        let secret = world.folder.path().join("secret.json");
        std::fs::write(&secret, "secret").unwrap();
        for bad in [
            "..\n.json",
            "a b.json",
            ".hidden.json",
            "-rf.json",
            "a;id.json",
            "$(id).json",
            "ä.json",
            "*.json",
            "x.txt",
        ] {
            std::fs::write(requests.join(bad), "bad").unwrap();
        }
        std::fs::write(requests.join(format!("{}.json", "l".repeat(200))), "bad").unwrap();
        symlink(&secret, requests.join("link.json")).unwrap();
        std::fs::create_dir(requests.join("folder.json")).unwrap();
        rustix_fifo(&requests.join("fifo.json"));
        std::fs::File::create(requests.join("huge.json"))
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        world.put("zz.json", b"good");

        let mut found = vec![next(&mut queue).await, next(&mut queue).await];
        found.sort_by_key(|item| matches!(item, Found::Request { .. }));

        assert_eq!(
            found,
            [
                Found::TooLong { id: id("huge") },
                Found::Request {
                    id: id("zz"),
                    bytes: Bytes::from_static(b"good")
                }
            ],
            "{name}"
        );
        assert_eq!(
            world.names("requests").len(),
            13,
            "{name}: {:?}",
            world.names("requests")
        );
        assert_eq!(
            answer(&mut queue, "huge", "x").await,
            Found::Written { id: id("huge") }
        );
        assert_eq!(
            answer(&mut queue, "zz", "x").await,
            Found::Written { id: id("zz") }
        );
        drop(queue.orders);
        while queue.found.recv().await.is_some() {}
        std::fs::remove_dir_all(&world.queue).unwrap();
    }
}

fn rustix_fifo(path: &Path) {
    assert!(
        std::process::Command::new("mkfifo")
            .arg(path)
            .status()
            .unwrap()
            .success()
    );
}

#[tokio::test]
async fn links_at_the_places_of_answers_are_never_written_through() {
    let world = World::new();
    for (name, channel) in world.channels() {
        let mut queue = channel.open().await.unwrap();
        let outside = world.folder.path().join("outside");
        std::fs::write(&outside, "precious").unwrap();
        symlink(&outside, world.queue.join("responses/a.json.tmp")).unwrap();
        symlink(&outside, world.queue.join("responses/b.json")).unwrap();
        for request in ["a", "b"] {
            world.put(&format!("{request}.json"), b"x");
            let found = next(&mut queue).await;
            let bytes = Bytes::from_static(b"x");
            assert_eq!(
                found,
                Found::Request {
                    id: id(request),
                    bytes
                },
                "{name}"
            );
            let written = answer(&mut queue, request, "answer").await;
            assert_eq!(written, Found::Written { id: id(request) }, "{name}");
        }

        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "precious", "{name}");
        assert_eq!(
            std::fs::read_to_string(world.queue.join("responses/a.json")).unwrap(),
            "answer",
            "{name}"
        );
        drop(queue.orders);
        while queue.found.recv().await.is_some() {}
        std::fs::remove_dir_all(&world.queue).unwrap();
    }
}

#[tokio::test]
async fn an_answer_to_a_request_that_is_gone_is_not_written() {
    let world = World::new();
    for (name, channel) in world.channels() {
        let mut queue = channel.open().await.unwrap();
        world.put("a.json", b"x");
        next(&mut queue).await;
        std::fs::remove_file(world.queue.join("claimed/a.json")).unwrap();

        assert_eq!(
            answer(&mut queue, "a", "x").await,
            Found::Gone { id: id("a") },
            "{name}"
        );

        assert_eq!(world.names("responses"), [""; 0], "{name}");
        drop(queue.orders);
        while queue.found.recv().await.is_some() {}
    }
}

#[tokio::test]
async fn what_a_lost_channel_had_claimed_is_found_by_the_next_one() {
    let world = World::new();
    for (name, channel) in world.channels() {
        let mut lost = channel.open().await.unwrap();
        world.put("a.json", b"one");
        next(&mut lost).await;
        std::fs::write(world.queue.join("responses/old.json"), "x").unwrap();
        drop(lost);

        let mut queue = loop {
            // A directory is held until the last task of the lost channel has ended.
            match channel.open().await {
                Ok(queue) => break queue,
                Err(fault) => assert_eq!(name, "directory", "{fault}"),
            }
        };

        assert_eq!(
            next(&mut queue).await,
            Found::Request {
                id: id("a"),
                bytes: Bytes::from_static(b"one")
            },
            "{name}"
        );
        assert_eq!(
            next(&mut queue).await,
            Found::Response { id: id("old") },
            "{name}"
        );
        let ids = vec![id("a"), id("old")];
        queue.orders.send(Order::Forget { ids }).await.unwrap();
        eventually("all is removed", || {
            world.names("claimed").is_empty() && world.names("responses").is_empty()
        })
        .await;
        drop(queue.orders);
        while queue.found.recv().await.is_some() {}
    }
}

#[tokio::test]
async fn a_pump_ends_with_its_input_and_with_its_successor() {
    let world = World::new();
    for shell in world.shells() {
        let first = world.pump(&shell).open().await.unwrap();
        let mut second = world.pump(&shell).open().await.unwrap();

        let mut first_found = first.found;
        let end = async { while let Some(Ok(_)) = first_found.recv().await {} };
        tokio::time::timeout(PATIENCE, end)
            .await
            .expect("the first gives way");
        world.put("a.json", b"x");
        assert!(
            matches!(next(&mut second).await, Found::Request { .. }),
            "{shell}"
        );
        assert_eq!(
            answer(&mut second, "a", "x").await,
            Found::Written { id: id("a") }
        );

        std::fs::remove_file(world.queue.join("responses/a.json")).unwrap();
        drop(second.orders);
        let end = async { while second.found.recv().await.is_some() {} };
        tokio::time::timeout(PATIENCE, end)
            .await
            .expect("the second ends");
    }
}

#[tokio::test]
async fn one_execution_alone_carries_an_answer_and_brings_the_next_request() {
    let world = World::new();
    let executions = Arc::new(AtomicU64::new(0));
    let mut queue = world.batch("sh", executions.clone()).open().await.unwrap();
    let before = executions.load(Ordering::Relaxed);

    for round in 0..10 {
        let name = format!("r{round}");
        world.put(&format!("{name}.json"), b"x");
        assert!(matches!(next(&mut queue).await, Found::Request { .. }));
        assert_eq!(
            answer(&mut queue, &name, "y").await,
            Found::Written { id: id(&name) }
        );
    }

    let each = executions.load(Ordering::Relaxed) - before;
    assert!(each <= 20, "{each} executions for 10 callbacks");
}

/// Ends a channel, and waits until nothing of it runs.
async fn close(queue: OpenQueue) {
    let OpenQueue {
        mut found,
        orders,
        tasks: _tasks,
        ..
    } = queue;
    drop(orders);
    while found.recv().await.is_some() {}
}

/// Waits until the channel says that a later owner was there, and for its end; which fence that one had.
async fn behind(queue: &mut OpenQueue) -> Option<u64> {
    let mut fence = None;
    loop {
        match tokio::time::timeout(PATIENCE, queue.found.recv())
            .await
            .expect("in time")
        {
            Some(Ok(Found::Behind { fence: found })) => fence = Some(found),
            Some(Ok(other)) => assert_eq!(other, Found::Beat, "an old owner's channel finds nothing"),
            Some(Err(_)) | None => return fence,
        }
    }
}

#[tokio::test]
async fn a_channel_of_an_older_fence_is_not_opened_and_leaves_the_newer_one_as_it_is() {
    let world = World::new();
    let older = world.fenced(6);
    for ((name, new), (_, old)) in world.fenced(7).into_iter().zip(older) {
        let mut queue = new.open().await.unwrap();
        assert_eq!(world.fence(), "7\n", "{name}");
        let turn = world.queue.join("pump");
        eventually("it has its turn", || turn.exists()).await;
        let owner = std::fs::read(&turn).unwrap();

        let refused = old.open().await;

        assert!(
            matches!(refused, Err(ChannelFault::Fenced(7))),
            "{name}: {refused:?}"
        );
        assert_eq!(std::fs::read(&turn).unwrap(), owner, "{name}");
        assert_eq!(world.fence(), "7\n", "{name}");
        world.put("a.json", b"x");
        let bytes = Bytes::from_static(b"x");
        assert_eq!(
            next(&mut queue).await,
            Found::Request { id: id("a"), bytes },
            "{name}"
        );
        assert_eq!(
            answer(&mut queue, "a", "y").await,
            Found::Written { id: id("a") },
            "{name}"
        );
        // The same owner again, as after a lost connection.
        close(queue).await;
        close(new.open().await.unwrap_or_else(|fault| panic!("{name}: {fault}"))).await;
        std::fs::remove_dir_all(&world.queue).unwrap();
    }
}

#[tokio::test]
async fn a_channel_that_is_open_does_nothing_once_a_later_owner_has_been_there() {
    let world = World::new();
    for (name, channel) in world.fenced(6) {
        let mut queue = channel.open().await.unwrap();
        world.put("a.json", b"x");
        let bytes = Bytes::from_static(b"x");
        assert_eq!(
            next(&mut queue).await,
            Found::Request { id: id("a"), bytes },
            "{name}"
        );

        // By hand, and by nothing else: whose turn it is, is as it was.
        std::fs::write(world.queue.join("later"), "7\n").unwrap();
        std::fs::rename(world.queue.join("later"), world.queue.join("fence")).unwrap();
        let orders = [
            Order::Write {
                id: id("a"),
                answer: Bytes::from_static(b"late"),
            },
            Order::Forget { ids: vec![id("a")] },
        ];
        for order in orders {
            // It may have ended before it was told.
            let _ = queue.orders.send(order).await;
        }
        world.put("b.json", b"y");

        let told = behind(&mut queue).await;

        // It may end with the loss of its input before it is heard; then it is told when it is opened again.
        assert!(matches!(told, None | Some(7)), "{name}: {told:?}");
        let again = channel.open().await;
        assert!(matches!(again, Err(ChannelFault::Fenced(7))), "{name}: {again:?}");
        assert_eq!(world.names("claimed"), ["a.json"], "{name}");
        assert_eq!(world.names("requests"), ["b.json"], "{name}");
        assert_eq!(world.names("responses"), [""; 0], "{name}");
        assert_eq!(world.fence(), "7\n", "{name}");
        drop(queue);
        std::fs::remove_dir_all(&world.queue).unwrap();
    }
}

#[tokio::test]
async fn a_newer_fence_takes_the_place_of_an_older_one_and_of_what_is_none() {
    let world = World::new();
    for (name, channel) in world.fenced(6) {
        for there in [
            "5\n",
            "",
            "x\n",
            "-9\n",
            "99999999999999999999\n",
            "6 7\n",
            "../../etc\n",
        ] {
            std::fs::create_dir_all(&world.queue).unwrap();
            std::fs::write(world.queue.join("fence"), there).unwrap();

            close(channel.open().await.unwrap()).await;

            assert_eq!(
                world.fence(),
                if there == "6 7\n" { there } else { "6\n" },
                "{name}: {there:?}"
            );
        }
        // Neither is a link written through, nor a folder in the way.
        let precious = world.folder.path().join("precious");
        std::fs::write(&precious, "9\n").unwrap();
        std::fs::remove_file(world.queue.join("fence")).unwrap();
        symlink(&precious, world.queue.join("fence")).unwrap();
        close(channel.open().await.unwrap()).await;
        assert_eq!(
            (world.fence().as_str(), std::fs::read(&precious).unwrap()),
            ("6\n", b"9\n".to_vec()),
            "{name}"
        );
        std::fs::remove_file(world.queue.join("fence")).unwrap();
        std::fs::create_dir(world.queue.join("fence")).unwrap();
        close(channel.open().await.unwrap()).await;
        assert_eq!(world.fence(), "6\n", "{name}");
        std::fs::remove_dir_all(&world.queue).unwrap();
    }
}

#[tokio::test]
async fn without_a_fence_there_is_no_such_file() {
    let world = World::new();
    for (name, channel) in world.channels() {
        let queue = channel.open().await.unwrap();

        assert!(!world.queue.join("fence").exists(), "{name}");

        close(queue).await;
        std::fs::remove_dir_all(&world.queue).unwrap();
    }
}
