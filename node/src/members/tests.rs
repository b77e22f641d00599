//! What is planned, and what is refused with which words.

use trivet_protocol::{MemberInfo, Millis, Position, RecordVersion, Seq};
use trivet_replica::upstairs::MemberStatus;

use super::*;

fn id(n: u8) -> MemberId {
    MemberId::from_bytes([n; 16])
}

fn config() -> Config {
    let mut text = "cluster = \"t\"\n".to_owned();
    for (i, (name, roles, pools)) in [
        ("a", "[\"replica\", \"exporter\"]", "{ main = \"/p\" }"),
        ("b", "[\"replica\"]", "{ main = \"/p\" }"),
        ("c", "[\"replica\"]", "{ main = \"/p\" }"),
        ("d", "[\"replica\"]", "{ one = \"/p\", two = \"/q\" }"),
        ("e", "[\"exporter\"]", "{}"),
        ("w", "[\"witness\"]", "{ main = \"/p\" }"),
    ]
    .into_iter()
    .enumerate()
    {
        text.push_str(&format!(
            "[[node]]\nname = \"{name}\"\naddresses = [\"127.0.0.1:{}\"]\nroles = {roles}\npools \
             = {pools}\n",
            7100 + i
        ));
    }
    Config::parse(&text).unwrap()
}

/// A volume with replicas on these nodes, and a witness on `w`, if so.
fn record(on: &[&str], witness: bool) -> Record {
    let member = |(i, node): (usize, &&str)| MemberInfo {
        id: id(i as u8),
        node: (*node).to_owned(),
        kind: MemberKind::Replica,
        opens: 0,
        durable: Position::default(),
    };
    let mut members: Vec<MemberInfo> = on.iter().enumerate().map(member).collect();
    let in_sync = members.iter().map(|m| m.id).take(3).collect();
    if witness {
        members.push(MemberInfo {
            id: id(9),
            node: "w".into(),
            kind: MemberKind::Witness,
            ..members[0].clone()
        });
    }
    Record {
        version: RecordVersion::default(),
        volume: VolumeId::from_bytes([7; 16]),
        blocks: 100,
        members,
        in_sync,
        min_copies: if witness { 1 } else { 2 },
        lease: Millis(2000),
        losses: 0,
    }
}

/// With the nodes in `down` away.
fn status(record: &Record, down: &[&str]) -> Status {
    let member = |m: &MemberInfo| MemberStatus {
        id: m.id,
        node: m.node.clone(),
        kind: m.kind,
        in_sync: record.in_sync.contains(&m.id),
        up: !down.contains(&m.node.as_str()),
        data: None,
        durable: Seq(0),
        trouble: None,
        resync: None,
        pool_free: 0,
    };
    Status {
        active: true,
        generation: 1,
        lease_left: Millis(1000),
        last: Seq(0),
        commit: Seq(0),
        stopped: None,
        members: record.members.iter().map(member).collect(),
        failures_tolerated: 1,
        diskless: false,
        replacing: None,
        scrub: None,
        warnings: Vec::new(),
    }
}

fn planned(
    record: &Record,
    status: &Status,
    down: &[&str],
    what: &ChangeKind,
) -> Result<Plan, String> {
    let usable = |n: &str| !down.contains(&n);
    let seen = Seen {
        config: &config(),
        record,
        status,
        usable: &usable,
    };
    plan(&seen, what)
}

fn add(node: &str, pool: Option<&str>, witness: bool) -> ChangeKind {
    ChangeKind::Add {
        node: node.into(),
        pool: pool.map(Into::into),
        witness,
    }
}

fn remove(node: &str) -> ChangeKind {
    ChangeKind::Remove { node: node.into() }
}

fn move_to(from: Option<&str>, node: &str, pool: Option<&str>) -> ChangeKind {
    ChangeKind::Move {
        from: from.map(Into::into),
        node: node.into(),
        pool: pool.map(Into::into),
    }
}

#[test]
fn what_can_be_done_is_planned_in_full() {
    let three = record(&["a", "b", "c"], false);
    let well = status(&three, &[]);
    let moved = |from: &str, old: u8, begun| Plan::Move {
        old: id(old),
        from: from.into(),
        node: "d".into(),
        pool: if begun { String::new() } else { "two".into() },
        kind: MemberKind::Replica,
        begun: begun.then(|| id(3)),
    };
    let wanted = move_to(Some("b"), "d", Some("two"));
    assert_eq!(
        planned(&three, &well, &[], &wanted),
        Ok(moved("b", 1, false))
    );
    // The dead one goes, unless said otherwise.
    let ill = status(&three, &["c"]);
    let wanted = move_to(None, "d", Some("two"));
    assert_eq!(
        planned(&three, &ill, &["c"], &wanted),
        Ok(moved("c", 2, false))
    );
    // A move that was cut short after the new one came in goes on with it.
    let four = record(&["a", "b", "c", "d"], false);
    let wanted = move_to(Some("b"), "d", None);
    let again = planned(&four, &status(&four, &[]), &[], &wanted);
    assert_eq!(again, Ok(moved("b", 1, true)));

    let two = record(&["a", "b"], true);
    let well = status(&two, &[]);
    let plan = planned(&two, &well, &[], &add("c", None, false));
    assert!(matches!(plan, Ok(Plan::Add { pool, .. }) if pool == "main"));
    let plan = planned(&two, &well, &[], &remove("w"));
    assert_eq!(plan.map(|p| matches!(p, Plan::Remove { .. })), Ok(true));
    let plan = planned(&two, &well, &[], &move_to(Some("w"), "c", None));
    let kind = |p| {
        matches!(
            p,
            Plan::Move {
                kind: MemberKind::Witness,
                ..
            }
        )
    };
    assert_eq!(plan.map(kind), Ok(true), "a witness moves as a witness");
}

#[test]
fn a_refusal_names_its_cause_and_what_to_do() {
    let three = record(&["a", "b", "c"], false);
    let well = status(&three, &[]);
    let ill = status(&three, &["c"]);
    let mut short = three.clone();
    short.in_sync.remove(&id(2));
    let one = record(&["a"], false);
    let two = record(&["a", "b"], true);
    let cases: Vec<(&Record, &Status, &[&str], ChangeKind, &str)> = vec![
        (
            &three,
            &well,
            &[],
            add("x", None, false),
            "there are: a, b, c, d, e, w",
        ),
        (&three, &well, &[], add("a", None, false), "replica move"),
        (
            &three,
            &well,
            &[],
            add("d", Some("one"), false),
            "--from NODE",
        ),
        (&three, &well, &[], add("d", None, false), "say d:POOL"),
        (
            &three,
            &well,
            &[],
            add("d", Some("x"), false),
            "it has: one, two",
        ),
        (
            &three,
            &well,
            &[],
            add("e", None, false),
            "give it the role",
        ),
        (
            &three,
            &well,
            &[],
            add("w", None, false),
            "give it the role",
        ),
        (
            &three,
            &well,
            &["d"],
            add("d", Some("one"), false),
            "does not answer",
        ),
        (&three, &well, &[], remove("d"), "on: a, b, c"),
        (&short, &ill, &["c"], remove("a"), "replica add"),
        (&one, &well, &[], remove("a"), "volume delete"),
        (
            &three,
            &well,
            &[],
            move_to(None, "d", Some("one")),
            "--from NODE",
        ),
        (
            &three,
            &well,
            &[],
            move_to(Some("x"), "d", Some("one")),
            "on: a, b, c",
        ),
        (
            &three,
            &well,
            &[],
            move_to(Some("a"), "b", None),
            "choose another node",
        ),
        (&three, &well, &[], move_to(Some("a"), "a", None), "a:POOL"),
        (&two, &well, &[], add("d", None, true), "several pools"),
    ];
    for (record, status, down, what, says) in cases {
        let e = planned(record, status, down, &what).unwrap_err();
        assert!(e.contains(says), "{what:?}: {e}");
    }
    let mut busy = well.clone();
    busy.replacing = Some((id(0), id(1)));
    let e = planned(&three, &busy, &[], &remove("c")).unwrap_err();
    assert!(e.contains("being replaced"), "{e}");
    assert!(
        planned(&three, &busy, &[], &remove("a")).is_ok(),
        "one of the two"
    );
}
