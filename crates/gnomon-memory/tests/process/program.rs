//! The other processes of the tests: a holder (`hold SOCKET`), and a daemon that stages and waits to be killed (`stage
//! SOCKET BLOCKS`). Users have `gnomon hold-memory` and `gnomon serve`.

use std::{
    env,
    error::Error,
    io::{self, Read, Write},
    path::Path,
    time::Duration,
};

use gnomon_memory::{
    Gauge, GaugeError, GroupLimits, GroupName, HolderCommand, HostLimits, HostMemory, Opening, Patience, Staging,
    hold,
};
use gnomon_terms::Bytes;

/// How long a holder of a test stays when the test has been killed.
const PATIENCE: Patience = Patience { empty: Duration::from_secs(20), alone: Duration::from_secs(120) };

/// A host that is always well.
struct CalmHost;

impl Gauge for CalmHost {
    fn read(&self) -> Result<HostMemory, GaugeError> {
        Ok(HostMemory { total: Bytes(8 << 30), available: Bytes(8 << 30), ..HostMemory::default() })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["hold", socket] => Ok(hold(Path::new(socket), PATIENCE, &mut say)?),
        ["hold-briefly", socket] => {
            let brief = Patience { empty: Duration::ZERO, alone: Duration::ZERO };
            Ok(hold(Path::new(socket), brief, &mut say)?)
        }
        ["stage", socket, blocks] => stage(socket, blocks.parse()?),
        _ => Err("hold SOCKET, hold-briefly SOCKET, or stage SOCKET BLOCKS".into()),
    }
}

/// Stages so many blocks of 1 MiB for the group `web`, says so, and waits for the end of its standard input.
fn stage(socket: &str, blocks: u32) -> Result<(), Box<dyn Error>> {
    let holder = HolderCommand::new(socket, env::current_exe()?, ["hold", socket]);
    let web = GroupName::new("web")?;
    let opening = Opening::new(holder, HostLimits::default()).gauge(CalmHost);
    let staging = Staging::open(opening.group(web.clone(), GroupLimits::default()))?;
    staging.set_target(&web, &[(Bytes(1 << 20), blocks)])?;
    if staging.wait_until(Duration::from_secs(120), |accounts| accounts.host.staged.blocks == u64::from(blocks)) {
        say();
    }
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// A byte on the standard output. Nobody may be there to read it.
fn say() {
    let _ = io::stdout().write_all(b"!").and_then(|()| io::stdout().flush());
}
