"""English words that a picture says little about: articles, pronouns, auxiliaries, conjunctions, and the phrases that captions begin with.

Prepositions and adverbs of place (``on``, ``left``, ``above``), numbers and negations are not among them.
"""

FUNCTION_WORDS = frozenset(
    """
    a an the this that these those there here it its itself he she they them his her hers their theirs him we us our you your i me my
    who whom whose which what where when is are was were be been being am has have had having do does did doing can could may might
    must shall should will would and or but nor so if then than as of to for with by from at also too very just only some any each
    such own same other image images picture pictures photo photos photograph photographs photography illustration view scene thing
    things shape shapes object objects show shows showing shown see seen contain contains containing s t
    """.split()
)


def is_function_word(token: str) -> bool:
    """Whether ``token``, a word or a piece of one without its marks, is such a word or has no letter and no digit."""
    return token.lower() in FUNCTION_WORDS or not any(character.isalnum() for character in token)
