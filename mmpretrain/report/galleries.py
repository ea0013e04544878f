"""The pictures of the page: retrieval galleries, masked words, heat maps of words, masked regions, reconstructions, with a switch between
validations."""

from __future__ import annotations

import base64
from collections.abc import Callable

from mmpretrain.report.markup import Html, Pictures, join, tag
from mmpretrain.report.panels_schema import (
    AlignmentPanel,
    GeneratedPanel,
    Guess,
    HiddenRegion,
    Hit,
    MaskedPanel,
    Query,
    RebuiltExample,
    ReconstructionPanel,
    RegionsPanel,
    RetrievalPanel,
    Word,
    WordMap,
)
from mmpretrain.report.run import StoredPanel

WORTH_SHOWING = 0.02  # less probable further guesses are left out
STEP_LIMIT = 6  # validations shown per panel, evenly spread, the last always

TITLES = {
    "retrieval": ("Retrieval", "What each caption finds, and what each picture is called. The right answer is framed."),
    "masked": (
        "Masked words",
        "Words hidden from the model, and what it puts in their place. Where it is wrong, the truth and other guesses follow.",
    ),
    "alignment": (
        "Where words land",
        "Word alignment: for each word, how the transport plan spreads it over the patches or regions of the picture.",
    ),
    "regions": (
        "Masked regions",
        "Regions hidden from the model, and the class that it gives them. Where it is wrong, the truth and other guesses follow.",
    ),
    "reconstruction": ("Reconstructions", "Pictures, the grid of codes that each becomes, and what the decoder makes of the codes."),
    "generated": (
        "Generated pictures",
        "Pictures drawn for captions of the validation set, behind the picture that the caption belongs to, through its own codes.",
    ),
}


def sections(panels: list[StoredPanel], pictures: Pictures) -> list[tuple[str, str, Html]]:
    """(anchor, title, HTML) of each kind of panel that the run has."""
    made = []
    draw: dict[str, Callable[[StoredPanel, Pictures], Html]] = {
        "retrieval": _retrieval,
        "masked": _masked,
        "alignment": _alignment,
        "regions": _regions,
        "reconstruction": _reconstruction,
        "generated": _generated,
    }
    for kind, (title, words) in TITLES.items():
        names = sorted({stored.name for stored in panels if stored.panel.kind == kind})
        blocks = []
        for name in names:
            steps = spread([stored for stored in panels if stored.name == name and stored.panel.kind == kind])
            shown = [(stored.panel.step, draw[kind](stored, pictures)) for stored in steps]
            heading = tag("h3", name.replace("_", " ")) if len(names) > 1 else None
            blocks.append(join([heading, _switch(f"{kind}-{name}", title, shown)]))
        if blocks:
            made.append((kind, title, join([tag("p", words, class_="lead"), *blocks])))
    return made


def spread(stored: list[StoredPanel], limit: int = STEP_LIMIT) -> list[StoredPanel]:
    """At most ``limit`` of them, evenly spread, first and last included."""
    if len(stored) <= limit:
        return stored
    return [stored[round(i * (len(stored) - 1) / (limit - 1))] for i in range(limit)]


def _switch(identity: str, title: str, shown: list[tuple[int, Html]]) -> Html:
    last = len(shown) - 1
    bodies = [tag("div", body, class_="at", data_at=i, hidden=i != last) for i, (_, body) in enumerate(shown)]
    if last == 0:
        return join([tag("p", f"at step {shown[0][0]}", class_="when"), *bodies])
    buttons = [
        tag("button", step, type="button", data_to=i, aria_pressed="true" if i == last else "false") for i, (step, _) in enumerate(shown)
    ]
    bar = tag("div", tag("span", "at step"), *buttons, class_="switch", role="group", aria_label=f"{title}: training step")
    return tag("div", bar, *bodies, class_="switched", id=identity)


def _retrieval(stored: StoredPanel, pictures: Pictures) -> Html:
    body = stored.panel.body
    assert isinstance(body, RetrievalPanel)
    scorer = {"cosine": "sorted by cosine similarity", "itm": "sorted by the log-odds of a match"}.get(
        body.scorer, f"sorted by {body.scorer}"
    )
    note = f"A pool of {body.images} pictures and {body.texts} captions, {scorer}. A look, not a measurement: see the table for R@k."
    found = [_text_query(query, stored, pictures) for query in body.text_to_image]
    named = [_image_query(query, stored, pictures) for query in body.image_to_text]
    return join(
        [
            tag("p", note, class_="note"),
            tag("h3", "Text to image") if found else None,
            tag("div", *found, class_="queries") if found else None,
            tag("h3", "Image to text") if named else None,
            tag("div", *named, class_="queries") if named else None,
        ]
    )


def _rank(query: Query) -> Html:
    if query.rank == 1:
        return tag("span", "✓ first", class_="pill good")
    top = query.rank <= len(query.hits)
    return tag("span", f"rank {query.rank}" if top else f"✗ rank {query.rank}", class_="pill near" if top else "pill bad")


def _text_query(query: Query, stored: StoredPanel, pictures: Pictures) -> Html:
    hits = [_picture_hit(place, hit, stored, pictures) for place, hit in enumerate(query.hits, 1)]
    head = tag("header", tag("q", query.text or ""), _rank(query))
    return tag("article", head, tag("ol", *hits, class_="hits"), class_="query")


def _picture_hit(place: int, hit: Hit, stored: StoredPanel, pictures: Pictures) -> Html:
    alt = f"result {place}{', the right one' if hit.right else ''}" + (f": {hit.text}" if hit.text else "")
    caption = tag("small", "✓ " if hit.right else "", _score(hit))
    return tag("li", pictures.img(stored.folder, hit.image, alt), caption, class_="right" if hit.right else None, title=hit.text)


def _score(hit: Hit) -> str:
    return f"{hit.score:.2f}" if abs(hit.score) >= 1 else f"{hit.score:.3f}"


def _image_query(query: Query, stored: StoredPanel, pictures: Pictures) -> Html:
    hits = [
        tag(
            "li",
            tag("span", "✓ " if hit.right else "", hit.text or ""),
            tag("small", _score(hit)),
            class_="right" if hit.right else None,
        )
        for hit in query.hits
    ]
    picture = tag("div", pictures.img(stored.folder, query.image, "the query picture"), _rank(query), class_="subject")
    return tag("article", picture, tag("ol", *hits, class_="captions"), class_="query image-query")


def _masked(stored: StoredPanel, pictures: Pictures) -> Html:
    body = stored.panel.body
    assert isinstance(body, MaskedPanel)
    hidden = [word for example in body.examples for word in example.words if word.guesses]
    right = sum(word.guesses[0].text == word.text for word in hidden)
    note = f"{right} of {len(hidden)} hidden words are guessed right here." if hidden else "No word was hidden in these examples."
    made = []
    for example in body.examples:
        picture = (
            None
            if example.image is None
            else tag("div", pictures.img(stored.folder, example.image, "the picture of this text"), class_="subject")
        )
        words = [_word(word, first=i == 0) for i, word in enumerate(example.words)]
        made.append(tag("article", picture, tag("p", *words, class_="masked"), class_="query masked-query"))
    return join([tag("p", note, class_="note"), tag("div", *made, class_="queries two")])


def _word(word: Word, first: bool) -> Html:
    space = "" if word.glued or first else " "
    return join([space, _guessed(word.text, word.guesses) if word.guesses else word.text])


def _guessed(truth: str, guesses: tuple[Guess, ...]) -> Html:
    """The best guess of what was hidden; where it is wrong, the truth and the next ones."""
    best = guesses[0]
    if best.text == truth:
        return tag("span", tag("b", "✓ ", best.text), tag("small", _percent(best)), class_="guess good")
    known = next((guess for guess in guesses if guess.text == truth), None)
    others = [guess for guess in guesses[1:4] if guess is not known and guess.probability >= WORTH_SHOWING]
    line = join(
        [
            tag("b", "✗ ", best.text),
            tag("small", _percent(best)),
            tag("i", "truth: ", truth or "none"),
            None if known is None else tag("small", _percent(known)),
            *(tag("small", f"{guess.text} {_percent(guess)}", class_="other") for guess in others),
        ]
    )
    return tag("span", line, class_="guess bad")


def _percent(guess: Guess) -> str:
    return f"{100 * guess.probability:.0f} %"


def _alignment(stored: StoredPanel, pictures: Pictures) -> Html:
    body = stored.panel.body
    assert isinstance(body, AlignmentPanel)
    made = []
    for example in body.examples:
        whole = tag(
            "figure", tag("div", pictures.img(stored.folder, example.image, example.text), class_="stack"), tag("figcaption", "picture")
        )
        maps = [_map(word, pictures.img(stored.folder, example.image, "")) for word in example.words]
        made.append(tag("article", tag("header", tag("q", example.text)), tag("div", whole, *maps, class_="maps"), class_="query"))
    scale = tag("p", "weak", tag("span", class_="ramp", aria_hidden="true"), "strong, each word on its own scale", class_="note scale")
    return join([scale, tag("div", *made, class_="queries")])


def _map(word: WordMap, picture: Html) -> Html:
    rows, columns = len(word.weights), len(word.weights[0]) if word.weights else 0
    cells = bytes(min(255, max(0, round(255 * weight))) for row in word.weights for weight in row)
    label = f"heat map of the word {word.word}: {rows} by {columns} patches, the strongest takes {100 * word.share:.0f} %"
    canvas = tag("canvas", data_w=base64.b64encode(cells).decode(), data_rows=rows, data_columns=columns, role="img", aria_label=label)
    caption = tag(
        "figcaption", word.word, tag("small", f"{100 * word.share:.0f} %", title="share of the word's mass on its strongest patch")
    )
    return tag("figure", tag("div", picture, canvas, class_="stack"), caption)


def _regions(stored: StoredPanel, pictures: Pictures) -> Html:
    body = stored.panel.body
    assert isinstance(body, RegionsPanel)
    hidden = [region for example in body.examples for region in example.regions]
    right = sum(region.guesses[0].text == region.text for region in hidden)
    made = []
    for example in body.examples:
        shown = [_hidden(region, pictures.img(stored.folder, example.image, "")) for region in example.regions]
        header = None if example.text is None else tag("header", tag("q", example.text))
        made.append(tag("article", header, tag("div", *shown, class_="maps"), class_="query"))
    note = f"{right} of {len(hidden)} hidden regions are guessed right here."
    return join([tag("p", note, class_="note"), tag("div", *made, class_="queries")])


def _hidden(region: HiddenRegion, picture: Html) -> Html:
    x1, y1, x2, y2 = (round(side, 4) for side in region.box)
    box = tag("rect", x=x1, y=y1, width=round(x2 - x1, 4), height=round(y2 - y1, 4), vector_effect="non-scaling-stroke")
    label = f"the hidden region: {region.text or 'no class'}, guessed {region.guesses[0].text}"
    frame = tag("svg", box, viewBox="0 0 1 1", preserveAspectRatio="none", role="img", aria_label=label)
    return tag("figure", tag("div", picture, frame, class_="stack"), tag("figcaption", _guessed(region.text, region.guesses)))


def _reconstruction(stored: StoredPanel, pictures: Pictures) -> Html:
    body = stored.panel.body
    assert isinstance(body, ReconstructionPanel)
    mean = sum(example.psnr for example in body.examples) / max(1, len(body.examples))
    note = f"{body.used} different codes in {len(body.examples)} pictures; {mean:.1f} dB on average."
    made = [tag("article", tag("div", *_rebuilt(stored, example, pictures), class_="maps"), class_="query") for example in body.examples]
    return join([tag("p", note, class_="note"), tag("div", *made, class_="queries two")])


def _rebuilt(stored: StoredPanel, example: RebuiltExample, pictures: Pictures) -> list[Html]:
    parts = (("picture", example.image), ("codes", example.codes), (f"{example.psnr:.1f} dB", example.rebuilt))
    return [
        tag("figure", tag("div", pictures.img(stored.folder, name, label), class_="stack"), tag("figcaption", label))
        for label, name in parts
    ]


def _generated(stored: StoredPanel, pictures: Pictures) -> Html:
    body = stored.panel.body
    assert isinstance(body, GeneratedPanel)
    made = []
    for example in body.examples:
        named = [] if example.own is None else [("own codes", example.own)]
        named += [(f"drawn {number}", name) for number, name in enumerate(example.images, 1)]
        figures = [
            tag("figure", tag("div", pictures.img(stored.folder, name, label), class_="stack"), tag("figcaption", label))
            for label, name in named
        ]
        made.append(tag("article", tag("header", tag("q", example.text)), tag("div", *figures, class_="maps"), class_="query"))
    note = f"Not chosen: the first pictures of each caption ({body.how}), the same noise at every step."
    return join([tag("p", note, class_="note"), tag("div", *made, class_="queries")])
