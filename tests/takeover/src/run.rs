//! `takeovers`: a whole run.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use trivet_bench::rng::Rng;

use crate::RunArgs;
use crate::beside::Beside;
use crate::cluster::{Watch, bring_up};
use crate::error::{Result, file};
use crate::findings::{Findings, Kind};
use crate::lab::{Lab, SERVICE, VOLUME};
use crate::leaks::{grown, holdings};
use crate::load::Load;
use crate::nemesis::{Nemesis, Record, order};
use crate::report;
use crate::sys::Stop;

/// Where the daemons' logs go after a finding, from where the run was started.
const LOGS: &str = "var/takeover";

/// The load of a lab: at the client, and one writer on each host.
///
/// # Errors
/// It cannot be started.
pub fn start_load(lab: &Lab, findings: &Arc<Findings>, seed: u64) -> Result<Load> {
    let others: Vec<_> = lab
        .hosts
        .iter()
        .map(|h| (h.name.clone(), lab.netns_file(&h.name)))
        .collect();
    let export = format!("/{VOLUME}");
    Load::start(
        SERVICE,
        &export,
        &lab.netns_file("c1"),
        &others,
        findings,
        seed,
    )
}

/// Does it; whether all was as it should be.
///
/// # Errors
/// The run could not go on.
pub fn run(args: &RunArgs, stop: &Stop) -> Result<bool> {
    let seed = args.seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |d| d.as_secs() % 1_000_000)
    });
    println!("SEED={seed}");
    let found = args
        .beside
        .iter()
        .map(|p| p.canonicalize().map_err(file(p)));
    let beside: Vec<PathBuf> = found.collect::<Result<_>>()?;
    let findings = Arc::new(Findings::default());
    let mut lab = Lab::new(&args.common)?;
    let mut records = Vec::new();
    let done = in_lab(args, &beside, seed, &mut lab, &findings, &mut records, stop);
    if !records.is_empty() {
        println!("\n{}", report::table(&records));
    }
    if done.is_err() || findings.all() > 0 {
        save_logs(&lab)?;
    }
    for left in lab.remove() {
        findings.add(Kind::Leak, format!("left behind: {left}"));
    }
    let summary = done?;
    println!("{summary}");
    for (kind, words) in findings.words() {
        println!("{kind:?}: {words}");
    }
    let kept = !args.bars || report::bars_kept(&records);
    let good = findings.all() == 0;
    match (good, kept) {
        (true, true) => println!("takeovers: {} events, nothing wrong", records.len()),
        (true, false) => println!("takeovers: a pause is above its bar; SEED={seed}"),
        (false, _) => println!("takeovers: FINDINGS; logs are in {LOGS}; SEED={seed}"),
    }
    Ok(good && kept)
}

fn in_lab(
    args: &RunArgs,
    programs: &[PathBuf],
    seed: u64,
    lab: &mut Lab,
    findings: &Arc<Findings>,
    records: &mut Vec<Record>,
    stop: &Stop,
) -> Result<String> {
    let began = Instant::now();
    let watch: Watch = bring_up(lab, stop)?;
    let mut load = start_load(lab, findings, seed)?;
    let mut beside = Vec::new();
    for program in programs {
        let b = Beside::start(program, lab, seed, stop)?;
        for name in b.holds() {
            load.contend(SERVICE, &format!("/{VOLUME}"), &name)?;
        }
        beside.push(b);
    }
    // The nodes tell each other who is connected a few times a second: clients newer than that are
    // no clients yet that anybody could tell of a takeover.
    stop.sleep(Duration::from_secs(1))?;
    println!(
        "served and under load after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let first: Vec<_> = lab.hosts.iter().map(holdings).collect::<Result<_>>()?;
    let mut rng = Rng::new(seed);
    let events = order(&mut rng, args.count, &args.only, &args.except);
    let mut nemesis = Nemesis {
        lab,
        watch: &watch,
        load: &load,
        beside: &mut beside,
        findings,
        stop,
        rng,
    };
    for (n, event) in events.iter().enumerate() {
        let record = nemesis.run(*event)?;
        println!("{}", report::line(n + 1, events.len(), &record));
        records.push(record);
    }
    let shared = load.finish(stop)?;
    let mut said = String::new();
    for b in beside {
        said.push_str(&b.finish(findings, stop)?);
        said.push('\n');
    }
    for host in &lab.hosts {
        for words in grown(&first, &holdings(host)?) {
            findings.add(Kind::Leak, words);
        }
    }
    let summary = report::summary(&shared.counts, findings, shared.reigns.count());
    Ok(format!("{summary}{said}"))
}

fn save_logs(lab: &Lab) -> Result<()> {
    let to = Path::new(LOGS);
    std::fs::create_dir_all(to).map_err(file(to))?;
    for h in &lab.hosts {
        // A host that never served has none.
        let _ = std::fs::copy(h.log(), to.join(format!("{}.log", h.name)));
    }
    Ok(())
}
