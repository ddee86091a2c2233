"""Numbers as a report shows them."""


def shown(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or value != value else f"{value:+.{digits}f}".replace("-", "−")


def interval(bounds: list[float | None], digits: int = 3) -> str:
    return "–" if bounds[0] is None else f"{shown(bounds[0], digits)} to {shown(bounds[1], digits)}"


def p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return f"{p:.1e}" if p < 0.001 else f"{p:.3f}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def capital(text: str) -> str:
    return text if text.startswith(("real", "ssl", "self-training", "upper")) else text[:1].upper() + text[1:]
