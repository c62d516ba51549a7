//! A training written down, to go on where it was: every number that the next update depends on, and how the corpus was
//! told from others.

use super::adam::Adam;
use super::corpus::Corpus;
use super::model::{ModelError, number, read_curve, read_network, write_curve, write_network};
use super::network::{Cell, Network, State};
use super::tensors::Tensors;
use super::trainer::{Plan, Trainer};

impl Trainer {
    /// The training as a file.
    pub fn checkpoint(&self) -> Vec<u8> {
        let mut tensors = Tensors::default();
        write_network(&mut tensors, "now.", &self.network);
        write_network(&mut tensors, "best.", &self.best);
        let weights = self.network.values().len();
        tensors.floats("adam.mean", &[weights], self.adam.mean.clone());
        tensors.floats("adam.square", &[weights], self.adam.square.clone());
        let shape = [self.lanes.len(), self.network.shape().hidden];
        let joined = |part: fn(&State) -> &Vec<f32>| self.lanes.iter().flat_map(part).copied().collect();
        tensors.floats("lanes.hidden", &shape, joined(|lane| &lane.hidden));
        tensors.floats("lanes.memory", &shape, joined(|lane| &lane.memory));
        let texts = plan_texts(&self.plan).into_iter().chain([
            ("training", "1".to_owned()),
            ("corpus", self.corpus.to_string()),
            ("steps", self.adam.steps.to_string()),
            ("update", self.update.to_string()),
            ("so_far", self.so_far.0.to_string()),
            ("so_far_tokens", self.so_far.1.to_string()),
            ("curve", write_curve(&self.curve)),
        ]);
        tensors.metadata.extend(texts.map(|(key, text)| (key.to_owned(), text)));
        tensors.encode()
    }

    /// Goes on with a training that [`Trainer::checkpoint`] wrote, if it was of this plan and this corpus.
    pub fn resume(plan: Plan, corpus: &Corpus, bytes: &[u8]) -> Result<Trainer, ModelError> {
        let tensors = Tensors::decode(bytes)?;
        number::<u32>(&tensors, "training")?;
        if number::<u64>(&tensors, "corpus")? != corpus.digest() {
            return Err(ModelError::OtherTraining("recordings"));
        }
        let other = |(key, text): &(&'static str, String)| tensors.metadata.get(*key) != Some(text);
        if let Some((key, _)) = plan_texts(&plan).iter().find(|entry| other(entry)) {
            return Err(ModelError::OtherTraining(key));
        }
        let tokens = corpus.vocabulary.tokens();
        let network = read_network(&tensors, "now.", tokens)?;
        let best = read_network(&tensors, "best.", tokens)?;
        let fresh = Trainer::new(plan, corpus);
        if network.shape() != fresh.network.shape() || best.shape() != network.shape() {
            return Err(ModelError::Part("recurrent"));
        }
        let adam = read_adam(&tensors, network.values().len())?;
        let lanes = read_lanes(&tensors, fresh.lanes.len(), &network)?;
        let so_far = (number(&tensors, "so_far")?, number(&tensors, "so_far_tokens")?);
        let place = (number(&tensors, "update")?, so_far, read_curve(&tensors)?);
        Ok(Trainer::resumed((plan, corpus.digest()), (network, best), adam, lanes, place))
    }
}

fn plan_texts(plan: &Plan) -> [(&'static str, String); 8] {
    let cell: Cell = plan.cell;
    [
        ("cell", cell.name().to_owned()),
        ("hidden", plan.hidden.to_string()),
        ("seed", plan.seed.to_string()),
        ("rate", plan.rate.to_string()),
        ("lanes_wanted", plan.lanes.to_string()),
        ("stretch", plan.stretch.to_string()),
        ("most_epochs", plan.most_epochs.to_string()),
        ("patience", plan.patience.to_string()),
    ]
}

fn read_adam(tensors: &Tensors, weights: usize) -> Result<Adam, ModelError> {
    let read = |name, part| {
        let numbers: &[f32] = tensors.floats_of(name, &[weights]).ok_or(ModelError::Part(part))?;
        match numbers.iter().all(|number| number.is_finite()) {
            true => Ok(numbers.to_vec()),
            false => Err(ModelError::NotFinite(part)),
        }
    };
    let (mean, square) = (read("adam.mean", "adam.mean")?, read("adam.square", "adam.square")?);
    Ok(Adam { mean, square, steps: number(tensors, "steps")? })
}

fn read_lanes(tensors: &Tensors, lanes: usize, network: &Network) -> Result<Vec<State>, ModelError> {
    let hidden = network.shape().hidden;
    let read = |name: &'static str| tensors.floats_of(name, &[lanes, hidden]).ok_or(ModelError::Part(name));
    let states = read("lanes.hidden")?.chunks(hidden).zip(read("lanes.memory")?.chunks(hidden));
    Ok(states.map(|(hidden, memory)| State { hidden: hidden.to_vec(), memory: memory.to_vec() }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UnitIndex;

    fn corpus(steps: u32) -> Corpus {
        let path = (0..steps).map(|n| UnitIndex(n * 3 + n % 4)).collect();
        Corpus::of(&[path], 16, 0.2)
    }

    fn plan() -> Plan {
        Plan { hidden: 6, lanes: 3, stretch: 8, most_epochs: 3, patience: 3, ..Plan::new(Cell::Lstm, 2) }
    }

    #[test]
    fn halts_change_nothing() {
        let corpus = corpus(400);
        let mut straight = Trainer::new(plan(), &corpus);
        while !straight.advance(&corpus, 1000).over {}
        let mut halting = Trainer::new(plan(), &corpus);
        while !halting.advance(&corpus, 7).over {
            halting = Trainer::resume(plan(), &corpus, &halting.checkpoint()).unwrap();
        }
        assert_eq!(halting.checkpoint(), straight.checkpoint());
        assert_eq!((halting.best(), halting.curve()), (straight.best(), straight.curve()));
    }

    #[test]
    fn another_training_is_not_gone_on_with() {
        let trainer = Trainer::new(plan(), &corpus(400));
        let bytes = trainer.checkpoint();
        let resume = |plan, corpus: &Corpus| Trainer::resume(plan, corpus, &bytes).map(|_| ()).unwrap_err();
        assert_eq!(resume(plan(), &corpus(401)), ModelError::OtherTraining("recordings"));
        assert_eq!(resume(Plan { seed: 3, ..plan() }, &corpus(400)), ModelError::OtherTraining("seed"));
        assert_eq!(resume(Plan { cell: Cell::Gru, ..plan() }, &corpus(400)), ModelError::OtherTraining("cell"));
        assert!(Trainer::resume(plan(), &corpus(400), &bytes[..bytes.len() - 4]).is_err());
    }
}
