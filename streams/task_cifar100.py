"""Tasks about CIFAR-100's images: its classes, questions about its superclasses, captions. All sentences are [ours]."""

from __future__ import annotations

import numpy as np

from streams.task_kinds import ANY, Kind, Material, Samples, task

CLASSES = 100  # of the images
TASKS: dict[str, Kind] = dict(ANY)

# The superclasses in the order of their labels, each with its classes [Krizhevsky, Learning Multiple Layers of Features
# from Tiny Images, 2009]; labels of classes are places in the sorted order of all names, as CIFAR-100 has them. What
# is said of a superclass is ours; nobody can tell its two superclasses of vehicles apart by a word.
SUPERCLASSES = {
    "aquatic_mammals": ("an aquatic mammal", "beaver dolphin otter seal whale"),
    "fish": ("a fish", "aquarium_fish flatfish ray shark trout"),
    "flowers": ("a flower", "orchid poppy rose sunflower tulip"),
    "food_containers": ("a food container", "bottle bowl can cup plate"),
    "fruit_and_vegetables": ("a fruit or vegetable", "apple mushroom orange pear sweet_pepper"),
    "household_electrical_devices": ("an electrical device", "clock keyboard lamp telephone television"),
    "household_furniture": ("a piece of furniture", "bed chair couch table wardrobe"),
    "insects": ("an insect", "bee beetle butterfly caterpillar cockroach"),
    "large_carnivores": ("a large carnivore", "bear leopard lion tiger wolf"),
    "large_man-made_outdoor_things": ("a large construction", "bridge castle house road skyscraper"),
    "large_natural_outdoor_scenes": ("a natural scene", "cloud forest mountain plain sea"),
    "large_omnivores_and_herbivores": ("a large plant eater", "camel cattle chimpanzee elephant kangaroo"),
    "medium_mammals": ("a medium mammal", "fox porcupine possum raccoon skunk"),
    "non-insect_invertebrates": ("a non insect invertebrate", "crab lobster snail spider worm"),
    "people": ("a person", "baby boy girl man woman"),
    "reptiles": ("a reptile", "crocodile dinosaur lizard snake turtle"),
    "small_mammals": ("a small mammal", "hamster mouse rabbit shrew squirrel"),
    "trees": ("a tree", "maple_tree oak_tree palm_tree pine_tree willow_tree"),
    "vehicles_1": ("a vehicle", "bicycle bus motorcycle pickup_truck train"),
    "vehicles_2": ("a vehicle", "lawn_mower rocket streetcar tank tractor"),
}
SAID = tuple(said for said, _ in SUPERCLASSES.values())
FINE = tuple(sorted(name for _, names in SUPERCLASSES.values() for name in names.split()))
COARSE_OF = np.array(
    [next(k for k, (_, names) in enumerate(SUPERCLASSES.values()) if name in names.split()) for name in FINE]
)
CAPTIONS = (
    "a photo of {}",
    "a small photo of {}",
    "a picture that shows {}",
    "here we see {}",
    "{} in a photo",
    "what is {}",
)


@task(TASKS, ("image",), "class", each="image")
def fine(material: Material) -> Samples:
    """Which of the 100 classes the image shows."""
    return Samples(material.labels, CLASSES)


@task(TASKS, ("image",), "class", each="image")
def coarse(material: Material) -> Samples:
    """Which of the 20 superclasses the image shows."""
    return Samples(COARSE_OF[material.labels], len(SUPERCLASSES))


@task(TASKS, ("image", "text"), "text", each="image")
def answer(material: Material) -> Samples:
    """Says "yes it is a vehicle" or "no it is not a vehicle" to "is it a vehicle".

    By lot every second image is asked about its own superclass, the others about one of the others.
    """
    others = [[k for k in range(len(SAID)) if SAID[k] != said] for said in SAID]
    asked = COARSE_OF[material.labels].copy()
    lie = material.generator.random(len(asked)) < 0.5
    drawn = material.generator.random(len(asked))
    for row in np.flatnonzero(lie):
        wrong = others[asked[row]]
        asked[row] = wrong[int(drawn[row] * len(wrong))]
    return Samples(
        np.zeros(len(asked), np.int64),
        texts=[f"is it {SAID[k]}" for k in asked],
        answers=[f"no it is not {SAID[k]}" if no else f"yes it is {SAID[k]}" for k, no in zip(asked, lie, strict=True)],
    )


@task(TASKS, ("text",), "text", each="sentence")
def phrase(material: Material) -> Samples:
    """Says "an otter is an aquatic mammal" to "a photo of an otter": 100 names in six captions."""
    made = {}
    for name, k in zip(FINE, COARSE_OF, strict=True):
        made |= {caption.format(_one(name)): f"{_one(name)} is {SAID[k]}" for caption in CAPTIONS}
    return Samples(np.zeros(len(made), np.int64), texts=tuple(made), answers=tuple(made.values()))


def _one(name: str) -> str:
    """The name with its article; cattle has none."""
    if name == "cattle":
        return name
    return f"{'an' if name[0] in 'aeio' else 'a'} {name.replace('_', ' ')}"
