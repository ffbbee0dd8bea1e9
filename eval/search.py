"""Test-time search for many conditions, on one or several processes: winners, and scores against cost; a killed run resumes.

accelerate launch eval/search.py --model flexar_xl.dfn --prompts coco.txt --method beam --verifier clip --budgets 50,400 --out outputs/search
"""

from vistok.metrics.processes import run_script
from vistok.report.search_command import add_search_arguments, run_search

if __name__ == "__main__":
    run_script("Test-time search: winners, and scores against cost.", add_search_arguments, run_search)
