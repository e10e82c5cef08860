//! Taking things back by agreement: features switched off, a policy that says who may restore, a recipe that does it all.

use std::process::Output;

use serde_json::json;

use crate::world::World;

const GET: &str = "online get carrier_delays carrier=UA";

const AGREED: &str = r#"
restore_policy:
  - name: two_of_us
    match: {views: [carrier_delays]}
    actors: [ana, ben]
    approval: required
recipes:
  - name: delays_look_wrong
    description: Delays drift after a deploy
    match: {views: [carrier_delays]}
    steps:
      - disable: {feature: avg_dep_delay_7d, serve: default}
      - require_approval: {by: [ben]}
      - restore: {to: last_good}
      - validate: {}
      - notify: {message: taken back}
"#;

/// As `user`, with a reason of several words.
fn said(world: &mut World, user: &'static str, line: &str) -> Output {
    world.variables = vec![("USER", user)];
    let mut arguments: Vec<&str> = line.split_whitespace().collect();
    arguments.extend(["--reason", "it drifts"]);
    world.command(&arguments).output().unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_feature_is_switched_off_for_readers_and_on_again() {
    let mut world = World::applied();
    world.quietly("backfill flights_daily --from 2013-01-08 --to 2013-01-10");
    let before = world.json(GET);
    assert_eq!(before.get("switched"), None);
    let missing = said(&mut world, "ana", "feature disable carrier_delays.avg_dep_delay --serve null");
    assert_eq!(missing.status.code(), Some(1));
    assert!(told(&missing).contains("did you mean `avg_dep_delay_7d`"), "{}", told(&missing));
    let off = said(&mut world, "ana", "feature disable carrier_delays.avg_dep_delay_7d --serve null");
    assert!(off.status.success(), "{}", told(&off));
    let during = world.json(GET);
    assert_eq!(during["features"]["avg_dep_delay_7d"], json!(null));
    assert_eq!(during["features"]["flights_7d"], before["features"]["flights_7d"]);
    assert_eq!(during["switched"], json!({ "avg_dep_delay_7d": "null" }));
    let listed = world.json("feature list");
    assert_eq!((&listed[0]["percent"], &listed[0]["reason"]), (&json!(100.0), &json!("it drifts")));
    let status = world.json("status");
    let line = status.as_array().unwrap().iter().find(|line| line["view"] == "carrier_delays@v1").unwrap();
    assert_eq!(line["switches"], json!({ "avg_dep_delay_7d": "null" }));
    // Neither a run nor a lost store lets it be forgotten.
    world.quietly("run flights_daily");
    assert_eq!(world.json(GET)["features"]["avg_dep_delay_7d"], json!(null));
    for file in ["online.db", "online.db-wal", "online.db-shm"] {
        let _ = std::fs::remove_file(world.folder.join(".tidegate").join(file));
    }
    world.quietly("online rebuild");
    assert_eq!(world.json(GET)["switched"], json!({ "avg_dep_delay_7d": "null" }));
    world.quietly("feature enable carrier_delays.avg_dep_delay_7d");
    let after = world.json(GET);
    assert_eq!(after.get("switched"), None);
    assert!(after["features"]["avg_dep_delay_7d"].is_number());
    assert_eq!(world.json("feature list"), json!([]));
}

#[test]
fn a_restore_keeps_the_policy_or_breaks_the_glass() {
    let mut world = World::applied();
    world.quietly("backfill flights_daily --from 2013-01-08 --to 2013-01-11");
    world.edit("flights_daily.yaml", |text| text + AGREED);
    world.quietly("apply --yes");
    let restore = "restore --view carrier_delays --last-good --yes";
    let live = world.json(GET)["snapshot"].clone();
    let refused = said(&mut world, "eve", restore);
    assert_eq!(refused.status.code(), Some(1));
    assert!(told(&refused).contains("the rule `two_of_us` stands against it"), "{}", told(&refused));
    let waiting = said(&mut world, "ana", restore);
    assert_eq!(waiting.status.code(), Some(1));
    assert_eq!(world.json(GET)["snapshot"], live, "nothing was changed");
    let asked = world.json("approvals");
    assert_eq!((asked.as_array().unwrap().len(), &asked[0]["state"]), (1, &json!("waiting")));
    let id = asked[0]["id"].as_str().unwrap().to_owned();
    for (user, code) in [("ana", 1), ("eve", 1), ("ben", 0)] {
        world.variables = vec![("USER", user)];
        let approved = world.command(&["approve", &id]).output().unwrap();
        assert_eq!(approved.status.code(), Some(code), "{user}: {}", told(&approved));
    }
    let done = said(&mut world, "ana", restore);
    assert!(done.status.success(), "{}", told(&done));
    let restored = world.json(GET)["snapshot"].clone();
    assert_ne!(restored, live);
    assert_eq!(world.json("approvals --all")[0]["state"], json!("used"));
    // An approval holds once; in an emergency there is another way, which is told.
    let again =
        said(&mut world, "ana", &format!("restore --view carrier_delays --to {} --yes", live.as_str().unwrap()));
    assert_eq!(again.status.code(), Some(1), "{}", told(&again));
    let glass = format!("restore --view carrier_delays --to {} --yes --break-glass", live.as_str().unwrap());
    let glass = said(&mut world, "eve", &glass);
    assert!(glass.status.success(), "{}", told(&glass));
    let broken = world.json("audit-log --action restore_break_glass");
    assert_eq!(broken[0]["detail"]["rules"], json!(["two_of_us"]));
    let notices = world.json("notices list --event policy.overridden");
    assert_eq!(notices.as_array().unwrap().len(), 1);
}

#[test]
fn a_recipe_does_what_it_says_once_somebody_has_approved() {
    let mut world = World::applied();
    world.quietly("backfill flights_daily --from 2013-01-08 --to 2013-01-11");
    world.edit("flights_daily.yaml", |text| text + AGREED);
    world.quietly("apply --yes");
    let live = world.json(GET)["snapshot"].clone();
    assert_eq!(world.json("recipe list")[0]["views"], json!(["carrier_delays@v1"]));
    let dry = world.quietly("recipe run delays_look_wrong --dry-run");
    assert!(dry.contains("--last-good"), "{dry}");
    assert_eq!(world.json(GET).get("switched"), None, "nothing was changed");
    let recipe = "recipe run delays_look_wrong --yes";
    let waiting = said(&mut world, "ana", recipe);
    assert_eq!(waiting.status.code(), Some(1), "{}", told(&waiting));
    let during = world.json(GET);
    assert_eq!((&during["switched"], &during["snapshot"]), (&json!({ "avg_dep_delay_7d": "default" }), &live));
    let id = world.json("approvals")[0]["id"].as_str().unwrap().to_owned();
    world.variables = vec![("USER", "ben")];
    world.quietly(&format!("approve {id}"));
    let done = said(&mut world, "ana", recipe);
    assert!(done.status.success(), "{}", told(&done));
    assert_ne!(world.json(GET)["snapshot"], live);
    let notices = world.json("notices list --event recipe.notified");
    assert_eq!(notices.as_array().unwrap().len(), 1);
    let ran = world.json("audit-log --action recipe_run");
    let whole: Vec<_> = ran.as_array().unwrap().iter().map(|event| event["detail"]["whole"].clone()).collect();
    assert_eq!(whole, [json!(true), json!(false)]);
}

const TRIGGERED: &str = r#"
recipes:
  - name: delays_out_of_range
    description: A night with delays that cannot be is taken back before anybody reads it
    match: {views: [carrier_delays], checks: ["range(*)"]}
    on: [check_failed_after_publish]
    steps:
      - restore: {to: last_good, cascade: with}
      - validate: {}
      - notify: {message: the night was taken back}
"#;

/// What a check only warns of is live, until a recipe that waits for it takes it back: once, and told.
#[test]
fn a_recipe_takes_back_what_a_check_only_warned_of() {
    let mut world = World::example();
    world.edit("flights_daily.yaml", |text| text.replacen("max: 1440}", "max: 1440, severity: warn}", 1) + TRIGGERED);
    world.quietly("apply --yes");
    world.quietly("backfill flights_daily --from 2013-01-27 --to 2013-01-29");
    world.run("recipe fire");
    let good = world.json(GET)["snapshot"].clone();
    world.copy("bad/flights/2013-01-29.parquet", "data/flights/2013-01-29.parquet");
    world.quietly("run flights_daily --interval 2013-01-29T02:15/2013-01-30T02:15");
    assert_ne!(world.json(GET)["snapshot"], good);
    world.run("recipe fire");
    assert_eq!(world.json(GET)["snapshot"], good);
    world.run("recipe list");
    world.run("recipe firings");
    world.run("restores");
    world.run("holds");
    world.run("recipe fire");
    world.run("audit-log --action recipe");
    world.run("notices list --event recipe.*");
    insta::assert_snapshot!(world.transcript());
}

const MARKED: &str = r#"
restore_policy:
  - name: few_of_us
    match: {views: [carrier_delays]}
    actors: [ana, ben]
recipes:
  - name: marked
    description: What somebody says is bad goes
    match: {views: [carrier_delays]}
    on: [marked_bad, incident]
    cooldown: 0s
    steps:
      - hold: {}
      - require_approval: {by: [ben]}
      - restore: {to: last_good}
"#;

/// A triggered recipe keeps the policy as nobody in particular, waits for a second person, and leaves what is newer alone.
#[test]
fn a_triggered_recipe_keeps_the_policy_and_waits_for_approval() {
    let mut world = World::applied();
    world.quietly("backfill flights_daily --from 2013-01-08 --to 2013-01-11");
    world.edit("flights_daily.yaml", |text| text + MARKED);
    world.quietly("apply --yes");
    let state = |world: &World| {
        let firings = world.json("recipe firings");
        let of = |firing: &serde_json::Value| (firing["state"].clone(), firing["steps_done"].clone());
        firings.as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    // An older snapshot is no longer what is live.
    let older = world.json("snapshots --view carrier_delays")[1]["id"].as_str().unwrap().to_owned();
    assert!(said(&mut world, "ana", &format!("snapshots mark {older} --bad")).status.success());
    world.quietly("recipe fire");
    assert_eq!(state(&world), [(json!("passed_over"), json!(0))]);
    assert_eq!(world.json("holds"), json!([]));
    // The newest is: the first step is done, the second waits.
    let live = world.json(GET)["snapshot"].as_str().unwrap().to_owned();
    assert!(said(&mut world, "ana", &format!("snapshots mark {live} --bad")).status.success());
    world.quietly("recipe fire");
    world.quietly("recipe fire");
    assert_eq!(state(&world)[0], (json!("waiting"), json!(1)));
    assert_eq!(world.json("holds")[0]["actor"], json!("recipe marked on marked_bad"));
    let approvals = world.json("approvals");
    assert_eq!(approvals.as_array().unwrap().len(), 1, "it is asked for once");
    world.variables = vec![("USER", "ben")];
    world.quietly(&format!("approve {}", approvals[0]["id"].as_str().unwrap()));
    // Approved as it is, it is still none of those whom the rule lets.
    let refused = world.command(&["recipe", "fire"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
    assert_eq!(state(&world)[0], (json!("stopped"), json!(2)));
    let outcome = world.json("recipe firings")[0]["outcome"].as_str().unwrap().to_owned();
    assert!(outcome.contains("the rule `few_of_us` stands against it"), "{outcome}");
    assert_eq!(world.json(GET)["snapshot"], json!(live), "nothing was changed");
    // Once it is allowed, what happens next goes through.
    world.edit("flights_daily.yaml", |text| {
        text.replace("actors: [ana, ben]", "actors: [ana, ben, \"recipe * on incident\"]")
    });
    world.quietly("apply --yes");
    let opened = said(&mut world, "ana", "incident open --view carrier_delays");
    assert!(told(&opened).contains("it triggers `marked`"), "{}", told(&opened));
    world.quietly("recipe fire");
    let approval = world.json("approvals")[0]["id"].as_str().unwrap().to_owned();
    world.variables = vec![("USER", "ben")];
    world.quietly(&format!("approve {approval}"));
    world.quietly("recipe fire");
    assert_eq!(state(&world)[0], (json!("done"), json!(3)));
    assert_ne!(world.json(GET)["snapshot"], json!(live));
    assert_eq!(world.json("restores")[0]["actor"], json!("recipe marked on incident"));
}

/// The definitions go back first, since what they let through would come again.
#[test]
fn definitions_are_reverted_and_not_brought_back_unasked() {
    let mut world = World::applied();
    world.run("definitions revert --reason none --yes");
    world.quietly("backfill flights_daily --from 2013-01-27 --to 2013-01-29");
    world.edit("flights_daily.yaml", |text| text.replacen("max: 1440}", "max: 1440, severity: warn}", 1));
    world.quietly("apply --yes");
    world.run("definitions list");
    world.run("definitions diff 1");
    world.quietly("restore --view carrier_delays --last-good --reason INC-1 --yes");
    let resume = ["resume", "--view", "carrier_delays", "--dry-run"];
    let warned = told(&world.command(&resume).output().unwrap());
    assert!(warned.contains("`tidegate definitions revert --to 1` brings back"), "{warned}");
    world.run("definitions revert --dry-run");
    world.run("definitions revert --yes --reason INC-1");
    world.run("definitions revert --to 1 --yes --reason INC-1");
    let warned = told(&world.command(&resume).output().unwrap());
    assert!(!warned.contains("definitions revert"), "{warned}");
    world.run("definitions list");
    // The files still say it: nobody brings it back unasked, also not with something else.
    world.run("apply --yes");
    world.edit("flights_daily.yaml", |text| text + "pools: [{name: slow, slots: 1}]\n");
    let refused = world.command(&["apply", "--yes"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
    world.run("apply --yes --bring-back");
    world.run("definitions diff 1 9");
    world.run("audit-log --action definitions");
    // What was brought back on purpose is no longer refused.
    world.edit("flights_daily.yaml", |text| text.replacen("slots: 1", "slots: 2", 1));
    world.quietly("apply --yes");
    insta::assert_snapshot!(world.transcript());
}
