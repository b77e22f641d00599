//! `demo`: three takeovers, told as they happen; `lab`: a served volume for hands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use trivet_bench::rng::Rng;

use crate::Common;
use crate::cluster::bring_up;
use crate::error::Result;
use crate::findings::Findings;
use crate::lab::{Lab, SERVICE, VOLUME};
use crate::nemesis::{Event, Nemesis};
use crate::run::start_load;
use crate::sys::Stop;

/// Shows it; whether all was as it should be.
///
/// # Errors
/// The lab fails.
pub fn demo(common: &Common, stop: &Stop) -> Result<bool> {
    let began = Instant::now();
    let findings = Arc::new(Findings::default());
    println!("Three hosts and a client, each in network namespaces of its own.");
    let mut lab = Lab::new(common)?;
    let watch = bring_up(&mut lab, stop)?;
    let load = start_load(&lab, &findings, 1)?;
    println!(
        "Volume {VOLUME} is served at {SERVICE}:/{VOLUME}; the client and all three hosts write to it, \
         4 KiB each, durably.\n"
    );
    show_status(&lab)?;
    let mut nemesis = Nemesis {
        lab: &mut lab,
        watch: &watch,
        load: &load,
        beside: &mut [],
        findings: &findings,
        stop,
        rng: Rng::new(1),
    };
    for event in [Event::LoseNode, Event::Kill, Event::Move] {
        stop.sleep(Duration::from_millis(500))?;
        tell(&mut nemesis, event)?;
    }
    let shared = load.finish(stop)?;
    println!(
        "{}",
        crate::report::summary(&shared.counts, &findings, shared.reigns.count())
    );
    drop(watch);
    let left = lab.remove();
    for l in &left {
        println!("left behind: {l}");
    }
    println!(
        "All of it is gone again, after {:.0} s.",
        began.elapsed().as_secs_f64()
    );
    Ok(findings.all() == 0 && left.is_empty())
}

fn tell(nemesis: &mut Nemesis<'_>, event: Event) -> Result<()> {
    println!("=== {}", event.name());
    let r = nemesis.run(event)?;
    println!(
        "the client's longest wait for a durable write: {:.2} s; active on {} before, on {} now; \
         redundant again after {:.1} s",
        r.pause.as_secs_f64(),
        r.nodes.0,
        r.nodes.1,
        r.whole_after.as_secs_f64()
    );
    show_status(nemesis.lab)
}

fn show_status(lab: &Lab) -> Result<()> {
    let (_, said, _) = lab.at_client(&["status"])?;
    println!("$ trivet status\n{said}");
    Ok(())
}

/// A served volume, until Ctrl-C.
///
/// # Errors
/// The lab fails.
pub fn lab(common: &Common, stop: &Stop) -> Result<bool> {
    let mut lab = Lab::new(common)?;
    let _watch = bring_up(&mut lab, stop)?;
    show_status(&lab)?;
    println!("directory: {}", lab.dir.display());
    for name in ["c1", "n1", "n2", "n3"] {
        println!("nsenter --net={}", lab.netns_file(name).display());
    }
    println!("Ctrl-C removes it all.");
    // Ends by Ctrl-C, which is no failure here.
    let _ = stop.sleep(Duration::from_secs(24 * 3600));
    Ok(lab.remove().is_empty())
}
