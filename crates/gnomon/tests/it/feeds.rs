//! Feeds: a real file, a real web server and real commands, as they fail in life.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{Router, routing::get};
use serde_json::Value;

use crate::house::{House, await_some};

/// What the server answers; nothing: it never does.
type Page = Arc<Mutex<Option<String>>>;

/// A web server with one page, on a port of its own. It ends with the test's process.
fn server(page: &Page) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("set");
    let (port, page) = (listener.local_addr().expect("bound").port(), Arc::clone(page));
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let answer = move || async move {
                let text = page.lock().expect("a page").clone();
                match text {
                    Some(text) => text,
                    None => std::future::pending().await,
                }
            };
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            axum::serve(listener, Router::new().route("/events.csv", get(answer))).await
        })
    });
    port
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

fn feed(house: &House, name: &str) -> Value {
    let feeds = house.look("/v1/feeds");
    feeds.as_array().and_then(|feeds| feeds.iter().find(|feed| feed["name"] == name)).cloned().unwrap_or_default()
}

/// Waits until a feed is in this state and says this; nothing: it is unknown.
fn await_feed(house: &House, name: &str, state: &str, value: Option<&str>) -> Value {
    let is_so = |feed: &Value| feed["state"] == state && feed["value"].as_str() == value;
    let look = || Some(feed(house, name)).filter(is_so);
    await_some(&format!("{name} to be {state} with {value:?}"), || feed(house, name).to_string(), look)
}

#[test]
fn a_feed_is_used_while_it_is_late_and_not_when_it_is_wrong_or_too_old() {
    let page: Page = Arc::new(Mutex::new(Some(format!("time,event\n{},Match\n", now() - 5))));
    let (house, port) = (House::unlit("a", ""), server(&page));
    let weather = house.text("weather.csv");
    let often = "every = 1\npatience = 2";
    let config = format!(
        "[[feed]]\nname = 'weather'\nfile = '{weather}'\n{often}\nedges = [0, 25]\n\
         [[feed]]\nname = 'events'\nurl = 'http://127.0.0.1:{port}/events.csv'\n{often}\n\
         [[feed]]\nname = 'old'\ncommand = ['echo', '{},Rain']\n{often}\noldest = 3600\n",
        now() - 7200
    );
    fs::write(house.config(), fs::read_to_string(house.config()).expect("a configuration") + &config)
        .expect("written");
    let mut house = house;
    house.start();
    await_feed(&house, "weather", "late", None);
    fs::write(&weather, format!("{},31.5\n", now() - 60)).expect("written");
    let told = await_feed(&house, "weather", "current", Some("25 or more"));
    assert!(told["age_s"].as_f64() >= Some(59.0) && told["why"].is_null(), "{told}");
    await_feed(&house, "old", "current", None);

    await_feed(&house, "events", "current", Some("Match"));
    *page.lock().expect("a page") = None;
    let told = await_feed(&house, "events", "late", Some("Match"));
    assert!(told["why"].as_str().is_some_and(|why| why.contains("patience")), "{told}");
    *page.lock().expect("a page") = Some("<html>Moved</html>".to_string());
    let told = await_feed(&house, "events", "wrong", None);
    assert!(told["why"].as_str().is_some_and(|why| why.contains("line 1")), "{told}");
    *page.lock().expect("a page") = Some(format!("{},Concert\n", now() - 5));
    await_feed(&house, "events", "current", Some("Concert"));
    let said = house.run(&["forecast", "feeds"]);
    assert!(
        ["Concert", "25 or more", "unknown", "current"].iter().all(|word| said.out.contains(word)),
        "{}",
        said.out
    );
    assert!(house.log().contains("a feed fails"), "{}", house.log());
}

#[test]
fn a_command_that_hangs_or_never_ends_is_stopped_with_all_that_it_began() {
    let house = House::unlit("a", "");
    let pids = house.text("pids");
    let config = format!(
        "[[feed]]\nname = 'stuck'\ncommand = ['sh', '-c', 'sleep 3600 & echo $! >> {pids}; wait']\nevery = 3600\npatience = 1\n\
         [[feed]]\nname = 'flood'\ncommand = ['head', '-c', '1G', '/dev/zero']\nevery = 3600\npatience = 600\n\
         [[feed]]\nname = 'broken'\ncommand = ['false']\n[[feed]]\nname = 'absent'\ncommand = ['/no/such/program']\n"
    );
    fs::write(house.config(), fs::read_to_string(house.config()).expect("a configuration") + &config)
        .expect("written");
    let mut house = house;
    house.start();
    await_feed(&house, "stuck", "late", None);
    let pid = fs::read_to_string(&pids).expect("its child").trim().to_string();
    let gone = || (!Path::new(&format!("/proc/{pid}/cwd")).exists()).then_some(());
    await_some("the end of what it began", || pid.clone(), gone);
    let told = await_feed(&house, "flood", "wrong", None);
    assert!(told["why"].as_str().is_some_and(|why| why.contains("at most")), "{told}");
    for name in ["broken", "absent"] {
        await_feed(&house, name, "late", None);
    }
    assert!(house.run(&["volume", "ls"]).code == 0, "the node does its work");
    assert!(
        House::unlit("b", "[[feed]]\nname = 'x'\n")
            .command(&["serve"])
            .output()
            .is_ok_and(|told| !told.status.success())
    );
}
