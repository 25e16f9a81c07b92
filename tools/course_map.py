"""Draw the map of the course: nbs/course_map.png, how text becomes text, one box a notebook.

    python tools/course_map.py           draw it
    python tools/course_map.py --links   the row of links that stands below it in nbs/index.ipynb
"""
import sys
from pathlib import Path

NBS = Path(__file__).resolve().parent.parent / "nbs"
BLUE, ORANGE, GREEN, GREY = "#cfe3f3", "#fbe3b4", "#cdeadd", "#e7e7ec"
# notebook, title, what it does, left, bottom, width, height, colour; only notebooks that exist are drawn
BOXES = [
    ("15_pipeline", "15 Pipeline", "the whole way in one call", 0.2, 6.35, 6.6, 0.8, GREY),
    ("16_cli", "16 Command line", "the same from a terminal", 7.2, 6.35, 6.6, 0.8, GREY),
    ("00_config", "00 Config", "every setting, checked; all the boxes below read it", 0.2, 5.2, 13.6, 0.8, GREY),
    ("01_tokenizer", "01 Tokenizer", "text to ids,\nand back", 1.9, 3.2, 1.9, 1.25, BLUE),
    ("02_data", "02 Data", "ids to\nbatches", 4.3, 3.2, 1.9, 1.25, BLUE),
    ("03_model", "03 Model", "batches to a\nguess and a loss", 6.9, 3.75, 2.0, 1.0, ORANGE),
    ("04_optim", "04 Optimizers", "loss to better\nweights", 6.9, 2.6, 2.0, 1.0, ORANGE),
    ("08_generation", "08 Generation", "guesses to\nnew text", 10.1, 3.2, 1.9, 1.25, GREEN),
    ("05_device", "05 Device", "where the\nnumbers live", 4.3, 0.9, 1.9, 1.25, ORANGE),
    ("07_training", "07 Training", "the loop around\nmodel and optimizer", 6.65, 0.9, 2.5, 1.25, ORANGE),
    ("06_checkpoint", "06 Checkpoints", "a run that\nsurvives", 10.1, 0.9, 1.9, 1.25, ORANGE),
    ("09_evaluation", "09 Evaluation", "how good", 0.2, -0.75, 2.15, 0.95, GREEN),
    ("10_advanced", "10 Advanced", "faster, larger", 2.5, -0.75, 2.15, 0.95, ORANGE),
    ("11_finetune", "11 Fine-tuning", "a second text", 4.8, -0.75, 2.15, 0.95, ORANGE),
    ("12_runs", "12 Runs", "logs compared", 7.1, -0.75, 2.15, 0.95, GREEN),
    ("13_dashboard", "13 Dashboards", "watch and steer", 9.4, -0.75, 2.15, 0.95, GREEN),
    ("14_export", "14 Export", "to other tools", 11.7, -0.75, 2.1, 0.95, GREEN),
]
ARROWS = [  # from, to, what travels along
    ((1.55, 3.83), (1.87, 3.83), ""), ((3.83, 3.83), (4.27, 3.83), ""), ((6.23, 3.83), (6.87, 4.1), ""),
    ((8.93, 4.1), (10.07, 3.83), ""), ((12.03, 3.83), (12.4, 3.83), ""), ((7.9, 3.73), (7.9, 3.62), ""),
    ((7.9, 2.58), (7.9, 2.17), ""), ((9.17, 1.52), (10.07, 1.52), ""), ((6.23, 1.52), (6.63, 1.52), ""),
    ((11.05, 2.17), (11.05, 3.18), "weights"),
]


def there():
    "The boxes whose notebooks exist."
    return [box for box in BOXES if (NBS / f"{box[0]}.ipynb").exists()]


def draw(path):
    "Write the picture; opaque, so that it reads the same on a dark page."
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    figure = Figure(figsize=(11.2, 6.7), facecolor="white")
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.01, 0.01, 0.98, 0.98), xlim=(0, 14), ylim=(-0.95, 7.4))
    ax.axis("off")
    for _, title, what, x, y, w, h, colour in there():
        shape = FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=0.12", fc=colour, ec="#555", lw=1)
        ax.add_patch(shape)
        lines = 1 + what.count("\n")
        ax.text(x + w / 2, y + h / 2 + 0.16 * lines, title, ha="center", va="center", weight="bold", size=11, color="#111")
        ax.text(x + w / 2, y + h / 2 - 0.19, what, ha="center", va="center", size=9.5, color="#222", linespacing=1.15)
    for x, text in (0.75, "your\ntext"), (13.2, "new\ntext"):
        ax.text(x, 3.83, text, ha="center", va="center", size=14, style="italic", color="#111")
    for start, end, text in ARROWS:
        ax.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", color="#333", lw=1.4, shrinkA=0, shrinkB=0))
        if text:
            ax.text(end[0] + 0.1, (start[1] + end[1]) / 2, text, size=9.5, va="center", color="#222")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def links():
    "Every box of the map as a link, in the map's order along the course."
    boxes = sorted(there())
    return " · ".join(f"[{title}]({name}.ipynb)" for name, title, *_ in boxes)


if __name__ == "__main__":
    if sys.argv[1:] == ["--links"]:
        print(links())
    else:
        draw(NBS / "course_map.png")
