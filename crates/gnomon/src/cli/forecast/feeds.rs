//! `gnomon forecast feeds`: what the world outside says, and whether it can be believed.

use crate::{
    api::types::FeedView,
    cli::{Context, Ended, output::table},
};

pub async fn run(context: &Context) -> Ended {
    let feeds: Vec<FeedView> = context.client.get("/v1/feeds").await?;
    context.output.result(&feeds, |feeds| words(feeds));
    Ok(())
}

fn words(feeds: &[FeedView]) -> String {
    if feeds.is_empty() {
        return "no feed is configured: add a [[feed]] section with a name and a file, a url or a command"
            .to_string();
    }
    let ago = |seconds: Option<f64>| seconds.map_or("-".to_string(), |seconds| format!("{seconds:.0} s"));
    let row = |feed: &FeedView| {
        [
            feed.name.clone(),
            feed.state.name().to_string(),
            feed.value.clone().unwrap_or_else(|| "unknown".to_string()),
            ago(feed.age_s),
            ago(feed.came_s),
            feed.source.clone(),
        ]
    };
    let rows: Vec<_> = feeds.iter().map(row).collect();
    let mut text = table(["FEED", "STATE", "VALUE", "AGE", "CAME", "SOURCE"], &rows);
    for (feed, why) in feeds.iter().filter_map(|feed| Some((&feed.name, feed.why.as_ref()?))) {
        text.push_str(&format!("\n{feed}: {why}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::FeedState;

    #[test]
    fn what_is_not_known_is_said_with_its_reason() {
        let (name, source) = ("weather".to_string(), "/weather".to_string());
        let feed =
            FeedView { name, source, state: FeedState::Wrong, why: Some("no comma".into()), ..FeedView::default() };
        let said = words(&[feed]);
        assert!(said.contains("unknown") && said.contains("wrong") && said.ends_with("weather: no comma"), "{said}");
        assert!(words(&[]).contains("[[feed]]"));
    }
}
