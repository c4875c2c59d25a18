"""What comes with the package can be loaded, and says where it is from."""

import pytest
import torch
from training import assert_same

import healthgym_utils as hg
from healthgym_utils import checkpoint, metrics
from healthgym_utils.pretrained import FOLDER, GENERATIONS, rebuild, untrained

NAMES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
EPOCHS = {
    "v1-100": 100,
    "v1-200": 200,
    "v2-100": 100,
    "v2.5-100": 100,
    "v3-250": 250,
    "v3-published-1000": 1000,
}
GAN_LESSONS = [10, 20, 30, 40, 50, 60]
# Batches of an epoch, all of 60 months; the others as GANs.
LESSONS = {"v3-250": [60] * 5, "v3-published-1000": [60] * 2}


def test_every_model_is_there_and_has_a_card():
    assert set(NAMES) == set(EPOCHS)
    for name in NAMES:
        card = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
        assert card.startswith(f"# {name}\n")
        assert "simulated" in card


def test_all_checkpoints_together_stay_small():
    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    assert size < 30e6


@pytest.mark.parametrize("name", NAMES)
def test_header_says_what_was_done(name):
    header = checkpoint.read_header(FOLDER / f"{name}.safetensors")
    assert header["provenance"]["source"] == "simulated"
    assert header["provenance"]["patients"] == 300
    assert header["epoch"] == EPOCHS[name]
    assert header["seconds"] > 0
    assert header["package_version"] and header["settings"]["seed"] == 42
    history = header["history"]
    assert history["epoch"][-1] == EPOCHS[name]
    lessons = LESSONS.get(name, GAN_LESSONS)
    assert history["length"] == lessons * EPOCHS[name]


@pytest.mark.parametrize("name", NAMES)
def test_fingerprint_is_that_of_the_simulated_cohort(name):
    """Resuming on the same data is accepted, so the data is the same."""
    model = hg.load_pretrained(name)
    cohort = hg.load_art("simulated", 300)
    x = hg.Preprocessor(hg.ART_SCHEMA).fit(cohort).transform(cohort)
    lengths = sorted({int(r["length"]) for r in model.history})
    loaders = hg.curriculum_loaders(x, lengths, batch_size=256)
    model.fit(loaders, epochs=model.epoch)  # refuses other data
    with pytest.raises(ValueError, match="other data"):
        model.fit(hg.curriculum_loaders(x[:200], lengths), epochs=model.epoch)


# Sampling the published model as its card does takes ten minutes.
SLOW = "v3-published-1000"


@pytest.mark.parametrize("name", [n for n in NAMES if n != SLOW])
def test_samples_decode_to_the_cards_figures(name):
    cohort = hg.load_art("simulated", 300)
    model = hg.load_pretrained(name, device=torch.device("cpu"))
    prep = hg.Preprocessor.from_dict(
        {
            "schema": hg.ART_SCHEMA.to_dict(),
            "scalings": model.provenance["scalings"],
        }
    )
    fitted = hg.Preprocessor(hg.ART_SCHEMA).fit(cohort)
    for lab, scaling in prep.scalings.items():
        assert scaling.power == pytest.approx(
            fitted.scalings[lab].power, rel=1e-4
        )
    fake = prep.inverse_transform(model.sample(300, 60))
    both = hg.load_art("simulated", 600)
    held_out = both[~both["PatientID"].isin(cohort["PatientID"])]
    ks = metrics.ks_distances(held_out, fake, hg.ART_SCHEMA)
    card = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    for lab, distance in ks.items():
        row = next(r for r in card.splitlines() if f"| KS {lab} " in r)
        assert float(row.split("|")[2]) == pytest.approx(distance, abs=0.01)


def test_the_published_diffusion_makes_too_many_women():
    model = hg.load_pretrained(SLOW, device=torch.device("cpu"))
    x = model.sample(40, 60, steps=10)
    women = x[..., hg.ART_SCHEMA.spans["Gender"]].argmax(-1) == 1
    assert women.float().mean() > 0.2  # of 14 % to 16 % in the cohort


def test_results_come_with_the_package():
    table = hg.load_results("fidelity_v1")
    assert {"v1-100", "v1-200", "floor"} == set(table["name"])
    with pytest.raises(ValueError, match="fidelity_v1"):
        hg.load_results("fidelity_v9")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="v1-100, v1-200"):
        hg.load_pretrained("v9")


@pytest.mark.parametrize("model", GENERATIONS)
def test_every_generation_is_rebuilt_from_its_header(model, tmp_path):
    made = untrained(model, seed=3, bf16=False)
    path = tmp_path / "m.safetensors"
    made.save(path)
    again = rebuild(path, hg.ART_SCHEMA, torch.device("cpu"))
    assert type(again) is type(made)
    assert getattr(again, "memory", None) is None or model in ("v2", "v2.5")
    assert_same(again, made)
    assert_same(untrained(model, seed=3, bf16=False), made)
