"""Write .dvc/plots.html, the page that `dvc plots show` and `dvc plots diff` fill.

    python -m tools.plots_page

DVC's own page loads Vega from the internet; this one has it within, as vl-convert-python brings it
for SVG and PNG. Run it after that package is pinned anew.
"""

import vl_convert

from verse.files import write_text

PAGE = """\
<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
{refresh_tag}
<title>DVC plots</title>
<script>
BUNDLE
</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def page() -> str:
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version="5.20")
    return PAGE.replace("BUNDLE", bundle)


def main() -> None:
    write_text(".dvc/plots.html", page())


if __name__ == "__main__":
    main()
